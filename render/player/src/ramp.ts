// The colours of depth: from a warm light tone (near) over red and violet to dark blue (far), evenly darker along the way.

/** RGBA bytes of `count` colours from near to far. */
export function depthRamp(count: number): Uint8Array {
  const bytes = new Uint8Array(4 * count);
  for (let i = 0; i < count; i++) bytes.set([...color(i / (count - 1)), 255], 4 * i);
  return bytes;
}

export function rampGradient(): string {
  const stops = Array.from({ length: 12 }, (_, i) => `rgb(${color(i / 11).join(",")})`);
  return `linear-gradient(to right, ${stops.join(",")})`;
}

/** A line in OKLCH (Ottosson 2020): lightness falls evenly, the hue turns from yellow through red to blue. */
function color(t: number): [number, number, number] {
  const lightness = 0.94 - 0.7 * t;
  const chroma = 0.09 + 0.1 * Math.sin(Math.PI * Math.min(1, 0.15 + 0.85 * t));
  const hue = ((95 - 190 * t) * Math.PI) / 180;
  return fromOklab(lightness, chroma * Math.cos(hue), chroma * Math.sin(hue));
}

function fromOklab(L: number, a: number, b: number): [number, number, number] {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  const encoded = linear.map((v) => (v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055));
  return encoded.map((v) => Math.round(255 * Math.min(1, Math.max(0, v)))) as [number, number, number];
}
