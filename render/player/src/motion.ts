// Gaussians that move: each blends a few rigid trajectories, the bases, as dual quaternions, just as geo4d.core.motion does.
// Spark makes all Gaussians anew for every picture; they are moved there, on the GPU, and sorted by where they are then.
import { type ExtSplats, dyno } from "@sparkjsdev/spark";
import * as THREE from "three";
import { type BlobData, DamagedError, unpacked } from "./data";

export interface MotionData extends BlobData {
  /** So many Gaussians, bases, and times at which the poses of the bases are given. */
  count: number;
  bases: number;
  times: number;
  /** Bases that a Gaussian blends at most, and bytes of the number of a base. */
  blended: number;
  index_bytes: 1 | 2;
  moving: number;
}

/** How a file of Gaussians lies in the world: p_world = origin + unit * axes * p_file. */
export interface Placement {
  origin: [number, number, number];
  unit: number;
  axes: [number, number, number];
}

/** A rigid motion in the axes of the file: p_then = rotation * p_rest + shift. */
export interface Rigid {
  rotation: THREE.Quaternion;
  shift: THREE.Vector3;
}

const WIDTH = 2048; // of Spark's textures of Gaussians

export class Motion {
  readonly time_s: Float64Array;
  /** World_from_rest of every base at every time: quaternions wxyz, and where its anchor is; and the anchor at rest. */
  private readonly turns: Float32Array;
  private readonly places: Float32Array;
  private readonly anchors: Float32Array;
  /** Per Gaussian up to four numbers, the heaviest first: base in the upper half, weight in 65535ths in the lower. */
  private readonly parts: Uint32Array;
  private readonly partsMap: THREE.DataArrayTexture;
  private readonly poseMap: THREE.DataTexture;

  private constructor(
    raw: ArrayBuffer,
    readonly data: MotionData,
    private readonly placement: Placement,
  ) {
    const { count, bases, times, blended, index_bytes } = data;
    let at = 0;
    const take = (bytes: number) => raw.slice(at, (at += bytes));
    this.time_s = new Float64Array(take(8 * times));
    this.turns = new Float32Array(take(16 * bases * times));
    this.places = new Float32Array(take(12 * bases * times));
    this.anchors = new Float32Array(take(12 * bases));
    const weights = new Uint16Array(take(2 * count * blended));
    const index = index_bytes === 1 ? new Uint8Array(take(count * blended)) : new Uint16Array(take(2 * count * blended));
    const height = Math.min(WIDTH, Math.ceil(count / WIDTH));
    const depth = Math.ceil(count / (WIDTH * height));
    this.parts = new Uint32Array(4 * WIDTH * height * depth);
    for (let k = 0; k < blended; k++) {
      for (let i = 0; i < count; i++) this.parts[4 * i + k] = index[k * count + i] * 65536 + weights[k * count + i];
    }
    this.partsMap = new THREE.DataArrayTexture(this.parts, WIDTH, height, depth);
    Object.assign(this.partsMap, { format: THREE.RGBAIntegerFormat, type: THREE.UnsignedIntType, internalFormat: "RGBA32UI" });
    this.partsMap.needsUpdate = true;
    this.poseMap = new THREE.DataTexture(new Float32Array(8 * bases), 2, bases, THREE.RGBAFormat, THREE.FloatType);
    this.set(this.time_s[0]);
  }

  static async read(bytes: Uint8Array, data: MotionData, placement: Placement): Promise<Motion> {
    const { buffer: raw } = await unpacked(bytes, "deflate");
    const { count, bases, times, blended, index_bytes } = data;
    if (raw.byteLength !== 8 * times + 28 * bases * times + 12 * bases + (2 + index_bytes) * count * blended) {
      throw new DamagedError("The motion in this file is not whole.");
    }
    return new Motion(raw, data, placement);
  }

  moves(gaussian: number): boolean {
    return this.parts[4 * gaussian] > 0;
  }

  /** Let the Gaussians be where they are at a time, from the next picture on. */
  set(time_s: number): void {
    (this.poseMap.image.data as Float32Array).set(this.posesAt(time_s));
    this.poseMap.needsUpdate = true;
  }

  /** The bases at a time in the axes of the file: real and dual quaternion (xyzw) of each. */
  posesAt(time_s: number): Float32Array {
    const { bases, times } = this.data;
    const reached = this.time_s.findIndex((t) => t >= time_s);
    const k = reached < 0 ? times - 1 : Math.max(reached, 1);
    const span = this.time_s[k] - this.time_s[k - 1];
    const share = Math.min(Math.max((time_s - this.time_s[k - 1]) / span, 0), 1);
    const found = new Float32Array(8 * bases);
    for (let base = 0; base < bases; base++) {
      const b = base * times + k;
      const turn = this.turn(b - 1).slerp(this.turn(b), share);
      const place = this.place(b - 1).lerp(this.place(b), share);
      const anchor = new THREE.Vector3().fromArray(this.anchors, 3 * base);
      this.write(found, 8 * base, turn, place.sub(anchor.applyQuaternion(turn)));
    }
    return found;
  }

  private turn(at: number): THREE.Quaternion {
    const [w, x, y, z] = this.turns.subarray(4 * at, 4 * at + 4);
    return new THREE.Quaternion(x, y, z, w).normalize();
  }

  private place(at: number): THREE.Vector3 {
    return new THREE.Vector3().fromArray(this.places, 3 * at);
  }

  /** A pose of the world, seen in the axes of the file, where its shift is that of the file's origin. */
  private write(to: Float32Array, at: number, turn: THREE.Quaternion, shift: THREE.Vector3): void {
    const { origin, unit, axes } = this.placement;
    const o = new THREE.Vector3(...origin);
    const s = o.clone().applyQuaternion(turn).add(shift).sub(o).divideScalar(unit).multiply(new THREE.Vector3(...axes));
    const q = new THREE.Quaternion(axes[0] * turn.x, axes[1] * turn.y, axes[2] * turn.z, turn.w);
    const dual = new THREE.Quaternion(0.5 * s.x, 0.5 * s.y, 0.5 * s.z, 0).multiply(q);
    to.set([q.x, q.y, q.z, q.w, dual.x, dual.y, dual.z, dual.w], at);
  }

  /** How a Gaussian has moved, by the bases of `posesAt`; null if it stands still. */
  of(gaussian: number, poses: Float32Array): Rigid | null {
    if (!this.moves(gaussian)) return null;
    const sum = new Float64Array(8);
    const first = 8 * (this.parts[4 * gaussian] >>> 16);
    for (let k = 0; k < 4; k++) {
      const part = this.parts[4 * gaussian + k];
      const base = 8 * (part >>> 16);
      let along = 0;
      for (let i = 0; i < 4; i++) along += poses[first + i] * poses[base + i];
      const weight = along < 0 ? -(part & 65535) : part & 65535;
      for (let i = 0; i < 8; i++) sum[i] += weight * poses[base + i];
    }
    const norm = Math.hypot(sum[0], sum[1], sum[2], sum[3]);
    const [x, y, z, w, dx, dy, dz, dw] = sum.map((v) => v / norm);
    const rotation = new THREE.Quaternion(x, y, z, w);
    const twice = new THREE.Quaternion(dx, dy, dz, dw).multiply(rotation.clone().conjugate());
    return { rotation, shift: new THREE.Vector3(2 * twice.x, 2 * twice.y, 2 * twice.z) };
  }

  toFile(p_world: THREE.Vector3): THREE.Vector3 {
    return this.directionToFile(p_world.clone().sub(new THREE.Vector3(...this.placement.origin)));
  }

  directionToFile(direction: THREE.Vector3): THREE.Vector3 {
    const { unit, axes } = this.placement;
    return direction.clone().divideScalar(unit).multiply(new THREE.Vector3(...axes));
  }

  toWorld(p_file: THREE.Vector3): THREE.Vector3 {
    const { origin, unit, axes } = this.placement;
    return p_file.clone().multiply(new THREE.Vector3(...axes)).multiplyScalar(unit).add(new THREE.Vector3(...origin));
  }

  /**
   * Have Spark move what it reads. Its colours are those of the rest pose seen from where the eye is for a Gaussian that
   * stays at rest: so they turn with the Gaussians, and no coefficient has to.
   */
  moveWhenRead(splats: ExtSplats): void {
    const atRest = splats.fetchSplat.bind(splats);
    splats.fetchSplat = ({ index, viewOrigin }) => {
      const motion = new dyno.Dyno({
        inTypes: { index: "int", eye: "vec3", parts: "usampler2DArray", poses: "sampler2D" },
        outTypes: { turn: "vec4", shift: "vec3", eyeAtRest: "vec3" },
        inputs: {
          index,
          eye: viewOrigin ?? dyno.dynoConst("vec3", [0, 0, 0]),
          parts: new dyno.DynoUsampler2DArray({ key: "parts", value: this.partsMap }),
          poses: new dyno.DynoSampler2D({ key: "poses", value: this.poseMap }),
        },
        globals: () => [BLEND],
        statements: ({ inputs, outputs }) => [
          "vec4 blended; vec3 shifted;",
          `blendBases(${inputs.parts}, ${inputs.poses}, ${inputs.index}, blended, shifted);`,
          outputs.turn ? `${outputs.turn} = blended;` : "",
          outputs.shift ? `${outputs.shift} = shifted;` : "",
          outputs.eyeAtRest ? `${outputs.eyeAtRest} = quatVec(vec4(-blended.xyz, blended.w), ${inputs.eye} - shifted);` : "",
        ],
      });
      const gsplat = atRest({ index, viewOrigin: viewOrigin && motion.outputs.eyeAtRest });
      return new dyno.Dyno({
        inTypes: { gsplat: dyno.Gsplat, turn: "vec4", shift: "vec3" },
        outTypes: { gsplat: dyno.Gsplat },
        inputs: { gsplat, turn: motion.outputs.turn, shift: motion.outputs.shift },
        statements: ({ inputs, outputs }) => [
          `${outputs.gsplat} = ${inputs.gsplat};`,
          `${outputs.gsplat}.center = quatVec(${inputs.turn}, ${inputs.gsplat}.center) + ${inputs.shift};`,
          `${outputs.gsplat}.quaternion = quatQuat(${inputs.turn}, ${inputs.gsplat}.quaternion);`,
        ],
      }).outputs.gsplat;
    };
  }
}

/** The same as `Motion.of`; the weights need no common factor, which the norm takes away. */
const BLEND = `
void blendBases(usampler2DArray parts, sampler2D poses, int index, out vec4 turn, out vec3 shift) {
  turn = vec4(0.0, 0.0, 0.0, 1.0);
  shift = vec3(0.0);
  uvec4 part = texelFetch(parts, splatTexCoord(index), 0);
  if (part.x == 0u) return;
  vec4 first = texelFetch(poses, ivec2(0, int(part.x >> 16u)), 0);
  vec4 real = vec4(0.0);
  vec4 dual = vec4(0.0);
  for (int k = 0; k < 4; k++) {
    float weight = float(part[k] & 0xffffu);
    if (weight == 0.0) break;
    vec4 pose = texelFetch(poses, ivec2(0, int(part[k] >> 16u)), 0);
    if (dot(first, pose) < 0.0) weight = -weight;
    real += weight * pose;
    dual += weight * texelFetch(poses, ivec2(1, int(part[k] >> 16u)), 0);
  }
  float norm = length(real);
  turn = real / norm;
  shift = 2.0 * quatQuat(dual / norm, vec4(-turn.xyz, turn.w)).xyz;
}`;
