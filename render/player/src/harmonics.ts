// View-dependent colours as the file has them. Spark 2.2 cuts every coefficient at the power of two below the largest of its
// colour, 0.49 at 0.25, when it packs them; here they are packed anew, with the exponent above, which its programs read as well.
import { unpacked } from "./data";

/** Bytes of a Gaussian in SPZ 3 before its coefficients: position, alpha, colour, scales, rotation. */
const BEFORE = 9 + 1 + 3 + 3 + 4;
const HEADER = 16;
/** Spark's names of arrays of four colours per Gaussian each: the coefficients one after the other. */
const ARRAYS = ["sh1", "sh2", "sh3a", "sh3b"];

/** The coefficients beyond the first of an SPZ file, as Spark's textures hold them. */
export async function packedHarmonics(spz: Uint8Array, count: number, degree: number): Promise<Record<string, Uint32Array>> {
  const bytes = await unpacked(spz, "gzip");
  const each = (degree + 1) ** 2 - 1;
  const packed: Record<string, Uint32Array> = {};
  for (const name of ARRAYS.slice(0, Math.ceil(each / 4))) packed[name] = new Uint32Array(4 * count);
  let at = HEADER + BEFORE * count;
  for (let i = 0; i < count; i++) {
    for (let k = 0; k < each; k++, at += 3) {
      packed[ARRAYS[k >> 2]][4 * i + (k & 3)] = packedColor(bytes[at] - 128, bytes[at + 1] - 128, bytes[at + 2] - 128);
    }
  }
  return packed;
}

/** Three numbers in 128ths as bytes under a common power of two, and their signs. */
function packedColor(r: number, g: number, b: number): number {
  const largest = Math.max(Math.abs(r), Math.abs(g), Math.abs(b));
  if (largest === 0) return 0;
  const exponent = Math.ceil(Math.log2(largest / 128));
  const factor = 255 / (128 * 2 ** exponent);
  const byte = (value: number) => Math.round(Math.abs(value) * factor);
  const signs = (r < 0 ? 1 : 0) | (g < 0 ? 2 : 0) | (b < 0 ? 4 : 0);
  return (byte(r) | (byte(g) << 8) | (byte(b) << 16) | (signs << 24) | ((exponent + 15) << 27)) >>> 0;
}
