// The paths of chosen points through all times, drawn over the picture, with a dot where each point is now.
import type { Vector3 } from "three";
import type { Motion } from "./motion";
import type { Shown } from "./picking";
import { type View, project } from "./view";

export interface Trail {
  /** The Gaussian that carries the point, and the point where it would be at rest, in the axes of the file. */
  gaussian: number;
  rest: Vector3;
  time_s: number[];
  p_world: Vector3[];
}

const COLORS = ["#ffd166", "#7fd1ff", "#ff8fab", "#b5e48c", "#cdb4ff", "#ffb074"];
const SVG = "http://www.w3.org/2000/svg";
/** A path has about so many corners, and one at every time of the motion at least. */
const CORNERS = 240;

export class Trails {
  readonly trails: Trail[] = [];
  private readonly time_s: number[];
  private readonly poses: Float32Array[];

  constructor(
    private readonly svg: SVGSVGElement,
    private readonly motion: Motion,
  ) {
    this.time_s = corners(motion.time_s);
    this.poses = this.time_s.map((t) => motion.posesAt(t));
  }

  /** Follow a place on a Gaussian, which carries it, as it is at a time; null if it stands still. */
  add({ gaussian, place }: Shown, time_s: number): Trail | null {
    const now = this.motion.of(gaussian, this.motion.posesAt(time_s));
    if (!now) return null;
    const rest = place.clone().sub(now.shift).applyQuaternion(now.rotation.conjugate());
    const p_world = this.poses.map((poses) => this.at(gaussian, rest, poses));
    const trail = { gaussian, rest, time_s: this.time_s, p_world };
    this.trails.push(trail);
    return trail;
  }

  clear(): void {
    this.trails.length = 0;
  }

  /** Where the point of a trail is. */
  place(trail: Trail, time_s: number): Vector3 {
    return this.at(trail.gaussian, trail.rest, this.motion.posesAt(time_s));
  }

  private at(gaussian: number, rest: Vector3, poses: Float32Array): Vector3 {
    const { rotation, shift } = this.motion.of(gaussian, poses)!;
    return this.motion.toWorld(rest.clone().applyQuaternion(rotation).add(shift));
  }

  draw(view: View, width: number, height: number, time_s: number): void {
    this.svg.replaceChildren();
    const passed = this.time_s.findIndex((t) => t > time_s);
    const split = passed < 0 ? this.time_s.length : passed;
    this.trails.forEach((trail, i) => {
      const now = this.place(trail, time_s);
      const before = line([...trail.p_world.slice(0, split), now], view, width, height);
      const after = line([now, ...trail.p_world.slice(split)], view, width, height);
      const stroke = COLORS[i % COLORS.length];
      this.path(before + after, { class: "halo" });
      this.path(after, { class: "after", stroke });
      this.path(before, { class: "before", stroke });
      const { u, v, depth } = project(view, width, height, now);
      if (depth > 0) this.svg.append(element("circle", { cx: u, cy: v, r: 5.5, fill: stroke }));
    });
  }

  private path(d: string, attributes: Record<string, string>): void {
    if (d) this.svg.append(element("path", { d, ...attributes }));
  }
}

/** All times of a motion, and as many evenly between each two as make about `CORNERS` in all. */
function corners(time_s: Float64Array): number[] {
  const each = Math.max(1, Math.round(CORNERS / (time_s.length - 1)));
  const found = [time_s[0]];
  for (let k = 1; k < time_s.length; k++) {
    for (let i = 1; i <= each; i++) found.push(time_s[k - 1] + (i / each) * (time_s[k] - time_s[k - 1]));
  }
  return found;
}

/** The path data of a line through points of the world, broken where it is behind the eye. */
function line(points: readonly Vector3[], view: View, width: number, height: number): string {
  let pen = "M";
  let data = "";
  for (const point of points) {
    const { u, v, depth } = project(view, width, height, point);
    if (depth <= 0) pen = "M";
    else {
      data += `${pen}${u.toFixed(2)} ${v.toFixed(2)}`;
      pen = "L";
    }
  }
  return data;
}

function element(name: string, attributes: Record<string, string | number>): SVGElement {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}
