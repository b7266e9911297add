// The player: ties the picture, the ways to move and the controls together, and is what `window.geo4d` offers.
import { Vector3 } from "three";
import { type SceneData, readBlob } from "./data";
import { Frusta } from "./frusta";
import { Measuring, type Measurement, lengthText } from "./measure";
import { Navigation } from "./navigation";
import { type Ends, Playback } from "./playback";
import { MODES, type Mode, Stage } from "./stage";
import { type Trail, Trails } from "./trails";
import {
  FREE_LENS, type View, alike, copyView, decodeView, encodeView, forward, lookingAlong, pictureRectangle, project, quaternion,
  unproject, viewOfCamera,
} from "./view";
import { Controls } from "./controls";

export const LAYERS = ["gaussians", "points", "mesh", "cameras", "photos"] as const;
export type Layer = (typeof LAYERS)[number];

export interface ViewNumbers {
  position: [number, number, number];
  quat_wxyz: [number, number, number, number];
  lens?: { fx: number; fy: number; cx: number; cy: number; w: number; h: number };
  focus?: number;
}

export class Player {
  readonly stage: Stage;
  readonly navigation: Navigation;
  readonly measuring: Measuring;
  readonly layers: Record<Layer, boolean> = { gaussians: false, points: false, mesh: false, cameras: true, photos: true };
  /** Index of the input camera that is looked through, -1 in between. */
  exact = -1;
  measureOn = false;
  time_s = 0;
  /** Null where the scene has no time. */
  playback: Playback | null = null;
  trails: Trails | null = null;
  /** Whether a click starts a trail. */
  tracing = false;

  private readonly controls: Controls;
  private frusta: Frusta | null = null;
  private readonly timeListeners: ((time_s: number) => void)[] = [];
  private readonly canvas = document.getElementById("view") as HTMLCanvasElement;
  private hoverCost = 0;

  constructor(readonly data: SceneData) {
    const start = this.overviewView();
    this.stage = new Stage(this.canvas, data, start);
    const metric = data.scale.kind === "metric";
    this.measuring = new Measuring(
      document.getElementById("lines") as unknown as SVGSVGElement,
      document.getElementById("labels")!,
      (distance) => lengthText(distance, metric),
    );
    this.navigation = new Navigation(this.canvas, start, new Vector3(...data.up_world).normalize(), data.bounds.radius, {
      onView: (view, byHand) => this.viewChanged(view, byHand),
      onClick: (u, v) => void this.clicked(u, v),
      onDoubleClick: (u, v) => this.turnRound(u, v),
      onHover: (u, v) => this.hovered(u, v),
    });
    this.controls = new Controls(this);
    this.stage.onFrame = (view) => this.drawOverlays(view);
    this.stage.onDepthRange = (range) => this.controls.showRange(range, metric);
    if (data.time) this.time_s = data.time.start_s;
  }

  async load(): Promise<void> {
    const { data, stage } = this;
    if (data.points) stage.addPoints(readBlob("points", data.points));
    if (data.mesh) stage.addMesh(readBlob("mesh", data.mesh));
    const moves = data.motion ? readBlob("motion", data.motion) : null;
    if (data.gaussians) await stage.addGaussians(readBlob("gaussians", data.gaussians), moves);
    if (stage.motion) this.trails = new Trails(document.getElementById("trails") as unknown as SVGSVGElement, stage.motion);
    if (data.time) this.playback = this.newPlayback(data.time.start_s, data.time.end_s);
    if (data.cameras.length > 0) {
      this.frusta = new Frusta(data.cameras, stage.shared, () => stage.invalidate());
      stage.overlay.add(this.frusta.group);
    }
    this.setLayer("gaussians", data.gaussians !== null);
    this.setLayer("points", data.gaussians === null && data.points !== null);
    this.setLayer("mesh", data.gaussians === null && data.points === null && data.mesh !== null);
    this.controls.show();
    await this.followFragment(false);
    window.addEventListener("hashchange", () => void this.followFragment(true));
    await stage.settle();
  }

  // Where to look from

  private overviewView(): View {
    const { position, quat_wxyz, focus } = this.data.overview;
    return { position: new Vector3(...position), rotation: quaternion(quat_wxyz), lens: { ...FREE_LENS }, focus };
  }

  overview(options: { animate?: boolean } = {}): Promise<void> {
    this.leave();
    return this.navigation.go(this.overviewView(), options.animate ?? true);
  }

  /** See from an input camera, with its exact field of view. */
  async jumpTo(index: number, options: { animate?: boolean } = {}): Promise<void> {
    const camera = this.data.cameras[index];
    if (!camera) throw new RangeError(`no camera ${index}; there are ${this.data.cameras.length}`);
    this.leave();
    const view = viewOfCamera(camera);
    await this.navigation.go(view, options.animate ?? true);
    if (!alike(this.navigation.current, view)) return; // the user took over on the way
    this.exact = index;
    this.controls.showExact();
    if (camera.time_s !== null && this.playback) this.setTime(camera.time_s); // when the photo was taken
    this.stage.invalidate();
  }

  /** The photo after (1) or before (-1) the one that is looked through. */
  step(by: 1 | -1): void {
    const n = this.data.cameras.length;
    if (n === 0) return;
    const from = this.exact >= 0 ? this.exact : by > 0 ? -1 : n;
    void this.jumpTo((from + by + n) % n);
  }

  setView(numbers: ViewNumbers, options: { animate?: boolean } = {}): Promise<void> {
    this.leave();
    const { current } = this.navigation;
    const view: View = {
      position: new Vector3(...numbers.position),
      rotation: quaternion(numbers.quat_wxyz),
      lens: { ...(numbers.lens ?? current.lens) },
      focus: numbers.focus ?? current.focus,
    };
    return this.navigation.go(view, options.animate ?? false);
  }

  getView(): Required<ViewNumbers> {
    const { position: p, rotation: q, lens, focus } = this.navigation.current;
    return { position: [p.x, p.y, p.z], quat_wxyz: [q.w, q.x, q.y, q.z], lens: { ...lens }, focus };
  }

  private viewChanged(view: View, byHand: boolean): void {
    if (byHand && this.exact >= 0 && !alike(view, viewOfCamera(this.data.cameras[this.exact]))) this.leave();
    this.stage.setView(view);
  }

  private leave(): void {
    if (this.exact < 0) return;
    this.exact = -1;
    this.controls.showExact();
    this.stage.invalidate();
  }

  /** Make a place that was clicked the one that the camera turns round, and look at it. */
  private turnRound(u: number, v: number): void {
    if (this.measureOn || this.tracing) return;
    const point = this.stage.pointAt(u, v);
    if (!point) return;
    this.leave();
    const view = this.navigation.current;
    const offset = point.clone().sub(view.position);
    const rotation = lookingAlong(offset, this.navigation.up);
    void this.navigation.go({ ...view, rotation, focus: offset.length() }, true);
  }

  /** What is up on the screen is up from now on. */
  takeUp(): void {
    const { rotation } = this.navigation.current;
    this.navigation.up.set(0, -1, 0).applyQuaternion(rotation);
    this.controls.say("Up is up now");
  }

  // What is shown

  setMode(mode: Mode): void {
    if (!MODES.includes(mode)) throw new RangeError(`no mode ${mode}; there are ${MODES.join(", ")}`);
    this.stage.setMode(mode);
    this.controls.showMode();
  }

  hasLayer(layer: Layer): boolean {
    const { data } = this;
    if (layer === "cameras") return data.cameras.length > 0;
    if (layer === "photos") return data.cameras.some((camera) => camera.photo);
    return data[layer] !== null;
  }

  setLayer(layer: Layer, visible: boolean): void {
    if (!LAYERS.includes(layer)) throw new RangeError(`no layer ${layer}; there are ${LAYERS.join(", ")}`);
    const { stage } = this;
    const shown = visible && this.hasLayer(layer);
    this.layers[layer] = shown;
    if (layer === "gaussians" && stage.splats) stage.splats.visible = shown;
    if (layer === "points" && stage.points) stage.points.visible = shown;
    if (layer === "mesh" && stage.mesh) stage.mesh.visible = shown;
    if (layer === "photos") this.frusta?.setPhotos(shown);
    this.controls.showLayers();
    stage.touch();
  }

  setBackground(color: string): void {
    this.stage.setBackground(color);
    this.controls.showBackground(color);
  }

  // Time: static scenes have none

  setTime(time_s: number): void {
    if (!Number.isFinite(time_s)) throw new RangeError(`no time ${time_s}`);
    if (this.playback) this.playback.set(time_s);
    else this.timeChanged(time_s);
  }

  private timeChanged(time_s: number): void {
    this.time_s = time_s;
    this.stage.setTime(time_s);
    for (const listener of this.timeListeners) listener(time_s);
    this.controls.showTime();
    this.stage.touch();
  }

  /** Call back whenever the time changes. */
  onTime(listener: (time_s: number) => void): void {
    this.timeListeners.push(listener);
  }

  /** Its frames are when photos were taken; where they have no times those of the motion, else 30 per second. */
  private newPlayback(start_s: number, end_s: number): Playback {
    const taken = this.data.cameras.map((camera) => camera.time_s ?? NaN).filter((t) => t >= start_s && t <= end_s);
    const known = new Set(taken.length > 0 ? taken : this.stage.motion?.time_s);
    const n = Math.max(1, Math.round(30 * (end_s - start_s)));
    const even = Array.from({ length: n + 1 }, (_, i) => start_s + (i / n) * (end_s - start_s));
    const frames_s = known.size > 1 ? [...known].sort((a, b) => a - b) : even;
    return new Playback(start_s, end_s, frames_s, {
      onTime: (time_s) => this.timeChanged(time_s),
      onState: () => this.controls.showPlayback(),
    });
  }

  // Trails

  setTracing(on: boolean): void {
    if (on && this.measureOn) this.setMeasuring(false);
    this.tracing = on && this.trails !== null;
    this.canvas.classList.toggle("tracing", this.tracing);
    this.controls.showPlayback();
    if (this.tracing && this.trails?.trails.length === 0) this.controls.say("Click what moves, to see its path");
  }

  /** Draw the path of what a pixel of the window shows; null where that stands still. */
  traceAt(u: number, v: number): Trail | null {
    const shown = this.stage.gaussianAt(u, v, this.time_s);
    const trail = shown && this.trails!.add(shown, this.time_s);
    if (!trail) this.controls.say(shown ? "That stands still" : "Nothing there to follow");
    this.controls.showPlayback();
    this.stage.invalidate();
    return trail;
  }

  clearTrails(): void {
    this.trails?.clear();
    this.controls.showPlayback();
    this.stage.invalidate();
  }

  // Links

  /** The fragment that leads back to what is seen now. */
  link(): string {
    const parts = [encodeView(this.navigation.current)];
    if (this.stage.mode !== "rgb") parts.push(`mode=${this.stage.mode}`);
    if (this.data.time) parts.push(`t=${Number(this.time_s.toFixed(4))}`);
    return `#${parts.join("&")}`;
  }

  private async followFragment(animate: boolean): Promise<void> {
    const fragment = new URLSearchParams(window.location.hash.slice(1));
    const mode = fragment.get("mode") as Mode | null;
    const camera = fragment.get("camera");
    const index = camera === null ? -1 : this.cameraIndex(camera);
    const view = decodeView(fragment, this.navigation.current);
    if (index >= 0) await this.jumpTo(index, { animate });
    else if (view) {
      this.leave();
      await this.navigation.go(view, animate);
    } else if (camera !== null || fragment.get("view") !== null) this.controls.say("The link names no view of this scene");
    if (mode && MODES.includes(mode)) this.setMode(mode);
    else if (view || index >= 0) this.setMode("rgb");
    const time_s = Number(fragment.get("t"));
    if (this.data.time && fragment.get("t") !== null && Number.isFinite(time_s)) this.setTime(time_s);
  }

  private cameraIndex(text: string): number {
    const named = this.data.cameras.findIndex((camera) => camera.name === text);
    if (named >= 0) return named;
    const index = Number(text);
    return Number.isInteger(index) && index in this.data.cameras ? index : -1;
  }

  // Hand

  setMeasuring(on: boolean): void {
    if (on && this.tracing) this.setTracing(false);
    this.measureOn = on;
    this.measuring.hover(null);
    this.canvas.classList.toggle("measuring", on);
    this.controls.showMeasuring();
    this.stage.invalidate();
  }

  /** Take one point of a distance, given in pixels of the window; the measurement that it completes, if any. */
  measureAt(u: number, v: number): Measurement | null {
    const point = this.stage.pointAt(u, v);
    if (!point) {
      this.controls.say("Nothing there to measure");
      return null;
    }
    const measurement = this.measuring.add(point);
    this.stage.invalidate();
    return measurement;
  }

  clearMeasurements(): void {
    this.measuring.clear();
    this.stage.invalidate();
  }

  private async clicked(u: number, v: number): Promise<void> {
    if (this.measureOn) {
      const measurement = this.measureAt(u, v);
      if (measurement) this.controls.sayMeasured(measurement.distance);
      return;
    }
    if (this.tracing) {
      this.traceAt(u, v);
      return;
    }
    const index = this.cameraUnder(u, v, true);
    if (index >= 0) await this.jumpTo(index);
  }

  private cameraUnder(u: number, v: number, unlessHidden: boolean): number {
    if (!this.frusta || !this.layers.cameras || this.exact >= 0) return -1;
    const view = this.navigation.current;
    const direction = unproject(view, this.stage.width, this.stage.height, u, v, 1).sub(view.position).normalize();
    const hit = this.frusta.hit(view.position, direction);
    if (!hit) return -1;
    if (unlessHidden) {
      const depth = this.stage.depthAt(u, v);
      const own = hit.distance * direction.dot(forward(view));
      if (depth !== null && depth < 0.98 * own) return -1;
    }
    return hit.index;
  }

  private hovered(u: number, v: number): void {
    if (this.measureOn) {
      if (!this.measuring.pending || this.hoverCost > 40) return; // drawing depth is slow on this machine
      const start = performance.now();
      this.measuring.hover(this.stage.pointAt(u, v));
      this.hoverCost = 0.7 * this.hoverCost + 0.3 * (performance.now() - start);
      return;
    }
    const index = this.tracing ? -1 : this.cameraUnder(u, v, false);
    this.frusta?.choose(index);
    this.canvas.classList.toggle("pointing", index >= 0);
    this.controls.showTip(index >= 0 ? this.data.cameras[index].name : null, u, v);
  }

  private drawOverlays(view: View): void {
    const { width, height } = this.stage;
    if (this.frusta) this.frusta.group.visible = this.layers.cameras && this.exact < 0;
    this.frusta?.seenFrom(view.position);
    this.measuring.draw(view, width, height);
    this.trails?.draw(view, width, height, this.time_s);
    const rectangle = this.exact >= 0 ? pictureRectangle(view.lens, width, height) : null;
    this.controls.placePhoto(rectangle);
  }

  /** What `window.geo4d` offers to pages and tests; numbers are in the scene's world, OpenCV axes, CSS pixels, seconds. */
  api() {
    return {
      scene: { ...this.data, cameras: this.data.cameras.map(({ photo, ...rest }) => ({ ...rest, photo: photo !== null })) },
      setView: (view: ViewNumbers, options?: { animate?: boolean }) => this.setView(view, options),
      getView: () => this.getView(),
      jumpTo: (index: number, options?: { animate?: boolean }) => this.jumpTo(index, options),
      overview: (options?: { animate?: boolean }) => this.overview(options),
      setMode: (mode: Mode) => this.setMode(mode),
      setLayer: (layer: Layer, visible: boolean) => this.setLayer(layer, visible),
      setBackground: (color: string) => this.setBackground(color),
      setMeasuring: (on: boolean) => this.setMeasuring(on),
      setTime: (time_s: number) => this.setTime(time_s),
      onTime: (listener: (time_s: number) => void) => this.onTime(listener),
      play: () => this.playback?.play(),
      pause: () => this.playback?.pause(),
      advance: (seconds: number) => this.playback?.advance(seconds),
      stepTime: (by: 1 | -1) => this.playback?.step(by),
      setSpeed: (speed: number) => this.playback?.setSpeed(speed),
      setEnds: (ends: Ends) => this.playback?.setEnds(ends),
      setTracing: (on: boolean) => this.setTracing(on),
      traceAt: (u: number, v: number) => trailNumbers(this.traceAt(u, v)),
      trails: () => (this.trails?.trails ?? []).map(trailNumbers),
      clearTrails: () => this.clearTrails(),
      pointAt: (u: number, v: number) => this.stage.pointAt(u, v)?.toArray() ?? null,
      pixelOf: (p: [number, number, number]) =>
        project(copyView(this.navigation.current), this.stage.width, this.stage.height, new Vector3(...p)),
      depthMap: async (width: number, height: number) => {
        await this.stage.settle();
        return this.stage.readDepth(width, height);
      },
      link: () => this.link(),
      settle: () => this.stage.settle(),
      capture: (options: { overlay?: boolean } = {}) => this.stage.capture(options.overlay ?? false),
      state: () => ({
        exact: this.exact,
        mode: this.stage.mode,
        layers: { ...this.layers },
        time_s: this.time_s,
        playing: this.playback?.playing ?? false,
        speed: this.playback?.speed ?? 1,
        ends: this.playback?.ends ?? "loop",
        tracing: this.tracing,
        drawn: this.stage.drawn,
        manner: this.navigation.manner,
        depthRange: [...this.stage.depthRange],
        measurements: this.measuring.measurements.map((m) => m.distance),
      }),
    };
  }
}

function trailNumbers(trail: Trail | null) {
  return trail && { gaussian: trail.gaussian, time_s: [...trail.time_s], p_world: trail.p_world.map((p) => p.toArray()) };
}
