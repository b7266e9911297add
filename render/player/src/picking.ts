// Which Gaussian a pixel shows: of those that its ray passes, in their order, the one with the largest share of the colour.
import { Vector3 } from "three";
import type { SplatMesh } from "@sparkjsdev/spark";
import type { Motion } from "./motion";

/** A ray in the axes of the file, as long as one unit of depth, and the deviation of a pixel at depth 1. */
export interface Ray {
  origin: Vector3;
  direction: Vector3;
  blur: number;
}

export interface Shown {
  gaussian: number;
  /** Where along the ray it is densest, in the axes of the file. */
  place: Vector3;
}

interface Passed {
  gaussian: number;
  order: number;
  depth: number;
  alpha: number;
}

const LEAST_ALPHA = 1 / 255;

/** `poses`: the bases at the time, of `Motion.posesAt`. Null where less than half of the pixel is covered. */
export function shownBy(splats: SplatMesh, motion: Motion, poses: Float32Array, ray: Ray): Shown | null {
  const passed: Passed[] = [];
  const length2 = ray.direction.lengthSq();
  const reach2 = 2 * Math.log(1 / LEAST_ALPHA);
  const from = new Vector3();
  const along = new Vector3();
  splats.forEachSplat((gaussian, center, scales, quaternion, opacity) => {
    const now = motion.of(gaussian, poses);
    from.copy(ray.origin);
    along.copy(ray.direction);
    if (now) {
      const back = now.rotation.conjugate(); // to where it would be at rest
      from.sub(now.shift).applyQuaternion(back);
      along.applyQuaternion(back);
    }
    from.sub(center);
    const order = -from.dot(along) / length2;
    if (order <= 0) return;
    const blur2 = (ray.blur * order) ** 2;
    const widest2 = Math.max(scales.x, scales.y, scales.z) ** 2 + blur2;
    if (from.lengthSq() - order * order * length2 > reach2 * widest2) return;
    const upright = quaternion.conjugate();
    from.applyQuaternion(upright);
    along.applyQuaternion(upright);
    const weight = new Vector3(scales.x, scales.y, scales.z).multiply(scales).addScalar(blur2);
    const [dd, df, ff] = [dot(along, along, weight), dot(along, from, weight), dot(from, from, weight)];
    const alpha = Math.min(0.999, opacity * Math.exp(-0.5 * Math.max(0, ff - (df * df) / dd)));
    if (alpha >= LEAST_ALPHA) passed.push({ gaussian, order, depth: -df / dd, alpha });
  });
  passed.sort((a, b) => a.order - b.order);
  let [left, share, best] = [1, 0, null as Passed | null];
  for (const one of passed) {
    if (left * one.alpha > share) [share, best] = [left * one.alpha, one];
    left *= 1 - one.alpha;
  }
  if (!best || left > 0.5) return null;
  return { gaussian: best.gaussian, place: ray.origin.clone().addScaledVector(ray.direction, best.depth) };
}

function dot(a: Vector3, b: Vector3, variance: Vector3): number {
  return (a.x * b.x) / variance.x + (a.y * b.y) / variance.y + (a.z * b.z) / variance.z;
}
