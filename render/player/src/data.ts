// What geo4d wrote into the page: a description as JSON, and blobs as base64, each in a script element of its own.

import type { MotionData } from "./motion";

export interface CameraData {
  name: string;
  /** fx, fy, cx, cy in pixels of the picture; the centre of the first pixel is (0.5, 0.5). */
  intrinsics: [number, number, number, number];
  hw: [number, number];
  /** Position and rotation (quaternion wxyz) of world_from_cam, OpenCV axes. */
  position: [number, number, number];
  quat_wxyz: [number, number, number, number];
  /** Median depth of what it sees, in scene units. */
  focus: number;
  time_s: number | null;
  /** A JPEG as data URI, or null. */
  photo: string | null;
}

export interface BlobData {
  bytes: number;
  crc32: number;
}

export interface SceneData {
  format: string;
  version: number;
  name: string;
  generator: string;
  scale: { kind: "metric" | "relative"; source: string; relative_error: number | null };
  up_world: [number, number, number];
  bounds: { centre: [number, number, number]; radius: number };
  overview: { position: [number, number, number]; quat_wxyz: [number, number, number, number]; focus: number };
  cameras: CameraData[];
  gaussians:
    | (BlobData & {
        count: number;
        sh_degree: number;
        format: "spz" | "ply";
        /** p_world = origin + unit * (axes * p_file). */
        origin: [number, number, number];
        unit: number;
        axes: [number, number, number];
      })
    | null;
  points: (BlobData & { count: number; spacing: number; low: number[]; high: number[] }) | null;
  mesh: (BlobData & { vertices: number; faces: number; low: number[]; high: number[] }) | null;
  time: { start_s: number; end_s: number } | null;
  /** How the Gaussians move; left out where they stand still. */
  motion?: MotionData;
  notes: string[];
}

/** The page is not whole, or not what this player reads; the message is for people. */
export class DamagedError extends Error {}

const FORMAT = "geo4d-player";
const VERSION = 1;

export function readScene(): SceneData {
  const text = document.getElementById("geo4d-scene")?.textContent;
  if (!text) throw new DamagedError("This page holds no scene. It is the template; `geo4d view SCENE` writes pages with one.");
  let scene: SceneData;
  try {
    scene = JSON.parse(text);
  } catch {
    throw new DamagedError("The description of the scene is damaged: the file was cut short or changed.");
  }
  if (scene.format !== FORMAT || scene.version !== VERSION) {
    throw new DamagedError(`The scene is of format ${scene.format} ${scene.version}; this page reads ${FORMAT} ${VERSION}.`);
  }
  return scene;
}

/** Decode a blob and compare length and checksum with what was written. */
export function readBlob(name: string, expected: BlobData): Uint8Array {
  const text = document.getElementById(`geo4d-${name}`)?.textContent ?? "";
  let bytes: Uint8Array;
  try {
    bytes = decodeBase64(text.trim());
  } catch {
    throw new DamagedError(`The ${name} in this file are damaged: the file was cut short or changed.`);
  }
  if (bytes.length !== expected.bytes) {
    throw new DamagedError(
      `The ${name} in this file are not whole: ${bytes.length} of ${expected.bytes} bytes. Copy the file again, or write it anew.`,
    );
  }
  if (crc32(bytes) !== expected.crc32) {
    throw new DamagedError(`The ${name} in this file are damaged: their checksum is wrong. Copy the file again, or write it anew.`);
  }
  return bytes;
}

function decodeBase64(text: string): Uint8Array {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** What a zlib or gzip stream holds. */
export async function unpacked(bytes: Uint8Array, format: "deflate" | "gzip"): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([bytes as Uint8Array<ArrayBuffer>]).stream().pipeThrough(new DecompressionStream(format));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function crc32(bytes: Uint8Array): number {
  const table = new Uint32Array(256);
  for (let n = 0; n < 256; n++) {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
    table[n] = c;
  }
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = table[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
