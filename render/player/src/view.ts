// A view: where the camera stands, how it is turned, and its lens. Everything here is in geo4d's conventions: world frame
// of the scene, OpenCV camera axes (x right, y down, z forward), pixels whose first centre is (0.5, 0.5).
import { Matrix4, PerspectiveCamera, Quaternion, Vector3 } from "three";
import type { CameraData } from "./data";

/** A pinhole camera of a picture of w x h pixels; the window shows the whole picture and what lies around it. */
export interface Lens {
  fx: number;
  fy: number;
  cx: number;
  cy: number;
  w: number;
  h: number;
}

export interface View {
  position: Vector3;
  /** Rotation of world_from_cam. */
  rotation: Quaternion;
  lens: Lens;
  /** Distance along the optical axis round which the camera turns. */
  focus: number;
}

/** 60 degrees across the shorter side of the window. */
export const FREE_LENS: Lens = { fx: 866, fy: 866, cx: 500, cy: 500, w: 1000, h: 1000 };
const THREE_FROM_OPENCV = new Quaternion(1, 0, 0, 0); // half a turn round x

export function viewOfCamera(camera: CameraData): View {
  const [fx, fy, cx, cy] = camera.intrinsics;
  return {
    position: new Vector3(...camera.position),
    rotation: quaternion(camera.quat_wxyz),
    lens: { fx, fy, cx, cy, w: camera.hw[1], h: camera.hw[0] },
    focus: camera.focus,
  };
}

export function quaternion([w, x, y, z]: [number, number, number, number]): Quaternion {
  return new Quaternion(x, y, z, w).normalize();
}

export function copyView(view: View): View {
  return { position: view.position.clone(), rotation: view.rotation.clone(), lens: { ...view.lens }, focus: view.focus };
}

export function forward(view: View): Vector3 {
  return new Vector3(0, 0, 1).applyQuaternion(view.rotation);
}

export function pivot(view: View): Vector3 {
  return forward(view).multiplyScalar(view.focus).add(view.position);
}

/** The rotation of world_from_cam of a camera that looks along a direction, its picture upright. */
export function lookingAlong(direction: Vector3, up: Vector3): Quaternion {
  const z = direction.clone().normalize();
  const x = z.clone().cross(up);
  if (x.lengthSq() < 1e-12) x.copy(Math.abs(z.x) < 0.9 ? new Vector3(1, 0, 0) : new Vector3(0, 1, 0)).cross(z);
  x.normalize();
  return new Quaternion().setFromRotationMatrix(new Matrix4().makeBasis(x, z.clone().cross(x), z));
}

/** The lens in pixels of a window: the picture as large as fits, in the middle. */
export function fitted(lens: Lens, width: number, height: number): Lens {
  const s = Math.min(width / lens.w, height / lens.h);
  const left = (width - s * lens.w) / 2;
  const top = (height - s * lens.h) / 2;
  return { fx: s * lens.fx, fy: s * lens.fy, cx: s * lens.cx + left, cy: s * lens.cy + top, w: width, h: height };
}

/** Where the picture lies in a window: left, top, width, height. */
export function pictureRectangle(lens: Lens, width: number, height: number): [number, number, number, number] {
  const s = Math.min(width / lens.w, height / lens.h);
  return [(width - s * lens.w) / 2, (height - s * lens.h) / 2, s * lens.w, s * lens.h];
}

/** Make three's camera see what the view sees. */
export function apply(view: View, camera: PerspectiveCamera, width: number, height: number, near: number, far: number): void {
  const k = fitted(view.lens, width, height);
  // x_clip = (2 (fx X + cx Z) / w - Z) with Z = -z, and likewise y; off-centre where the principal point is.
  // prettier-ignore
  camera.projectionMatrix.set(
    2 * k.fx / width, 0, 1 - 2 * k.cx / width, 0,
    0, 2 * k.fy / height, 2 * k.cy / height - 1, 0,
    0, 0, -(far + near) / (far - near), -2 * far * near / (far - near),
    0, 0, -1, 0,
  );
  camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
  camera.near = near;
  camera.far = far;
  camera.position.copy(view.position);
  camera.quaternion.copy(view.rotation).multiply(THREE_FROM_OPENCV);
  camera.updateMatrixWorld(true);
}

/** World point at z-depth `depth` behind a pixel of the window. */
export function unproject(view: View, width: number, height: number, u: number, v: number, depth: number): Vector3 {
  const k = fitted(view.lens, width, height);
  return new Vector3(((u - k.cx) / k.fx) * depth, ((v - k.cy) / k.fy) * depth, depth)
    .applyQuaternion(view.rotation)
    .add(view.position);
}

/** Pixel of the window and z-depth of a world point; not to be used where the depth is not positive. */
export function project(view: View, width: number, height: number, p: Vector3): { u: number; v: number; depth: number } {
  const k = fitted(view.lens, width, height);
  const c = p.clone().sub(view.position).applyQuaternion(view.rotation.clone().invert());
  return { u: (k.fx * c.x) / c.z + k.cx, v: (k.fy * c.y) / c.z + k.cy, depth: c.z };
}

/** Between two views, for an animation. `t` runs from 0 to 1. */
export function between(a: View, b: View, t: number, width: number, height: number): View {
  const ka = fitted(a.lens, width, height);
  const kb = fitted(b.lens, width, height);
  const mix = (x: number, y: number) => x + (y - x) * t;
  return {
    position: a.position.clone().lerp(b.position, t),
    rotation: a.rotation.clone().slerp(b.rotation, t),
    lens: { fx: mix(ka.fx, kb.fx), fy: mix(ka.fy, kb.fy), cx: mix(ka.cx, kb.cx), cy: mix(ka.cy, kb.cy), w: width, h: height },
    focus: mix(a.focus, b.focus),
  };
}

export function alike(a: View, b: View): boolean {
  const size = Math.max(1e-9, a.focus, b.focus);
  const lensAlike = (["fx", "fy", "cx", "cy"] as const).every((key) => Math.abs(a.lens[key] / a.lens.w - b.lens[key] / b.lens.w) < 1e-6);
  return a.position.distanceTo(b.position) < 1e-6 * size && Math.abs(a.rotation.dot(b.rotation)) > 1 - 1e-9 && lensAlike;
}

// The fragment of the address

/** "view=x,y,z,qw,qx,qy,qz&lens=fx,fy,cx,cy,w,h&focus=d": numbers in the world of the scene, OpenCV axes. */
export function encodeView(view: View): string {
  const { position: p, rotation: q, lens: k } = view;
  const numbers = (values: number[], digits: number) => values.map((v) => String(Number(v.toPrecision(digits)))).join(",");
  return [
    `view=${numbers([p.x, p.y, p.z], 8)},${numbers([q.w, q.x, q.y, q.z], 8)}`,
    `lens=${numbers([k.fx, k.fy, k.cx, k.cy, k.w, k.h], 7)}`,
    `focus=${numbers([view.focus], 6)}`,
  ].join("&");
}

/** The view of a fragment, or null where it has none or its numbers make no sense. */
export function decodeView(fragment: URLSearchParams, fallback: View): View | null {
  const numbers = (key: string) => (fragment.get(key) ?? "").split(",").map((v) => (v.trim() === "" ? NaN : Number(v)));
  const pose = numbers("view");
  if (pose.length !== 7 || !pose.every(Number.isFinite)) return null;
  const rotation = new Quaternion(pose[4], pose[5], pose[6], pose[3]);
  if (rotation.length() < 1e-6) return null;
  const [fx, fy, cx, cy, w, h] = numbers("lens");
  const lensIsValid = [fx, fy, w, h].every((v) => v > 0 && Number.isFinite(v)) && [cx, cy].every(Number.isFinite);
  const focus = Number(fragment.get("focus"));
  return {
    position: new Vector3(pose[0], pose[1], pose[2]),
    rotation: rotation.normalize(),
    lens: lensIsValid ? { fx, fy, cx, cy, w, h } : { ...fallback.lens },
    focus: focus > 0 && Number.isFinite(focus) ? focus : fallback.focus,
  };
}
