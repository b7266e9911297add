// Programs of the player, and what it changes in Spark's so that its pictures are those of geo4d's rasteriser.

/** Replace one piece of a program; a piece that is not there once means that the library is another one. */
function patched(program: string, piece: string, by: string): string {
  if (program.split(piece).length !== 2) throw new Error(`Spark's program has changed: ${piece}`);
  return program.replace(piece, () => by);
}

/**
 * Spark's vertex program with the slope of the projection held beyond 15 % outside of the window (3DGS; else Gaussians beside
 * the picture become needles across it), and with what `render.render_views` asks of a Gaussian: its plane, 1 / depth at a
 * pixel, where along its ray the Gaussian most likely is, linear in the pixel; and its shortest axis, as long as it is flat.
 * STEEPEST is that of render/views.py. No quad is drawn beyond where its alpha is too small to count.
 */
export function splatVertex(original: string): string {
  const declared = patched(
    original,
    "out vec2 vSplatUv;",
    "out vec2 vSplatUv;\nout float vInverseDepth;\nflat out vec3 vAxis;\nconst float STEEPEST = 0.15;\nconst float LEAST_DETERMINANT = 0.09;",
  );
  const held = patched(
    declared,
    "vec2 J2 = -(J1 * viewCenter.xy) * invZ;",
    `vec2 heldNdc = clamp(clipCenter.xy / clipCenter.w, -1.3, 1.3);
        vec2 principal = vec2(projectionMatrix[2][0], projectionMatrix[2][1]);
        vec2 J2 = J1 * (heldNdc + principal) / vec2(projectionMatrix[0][0], projectionMatrix[1][1]);`,
  );
  const tight = patched(held, "adjustedStdDev = maxStdDev;", "adjustedStdDev = min(maxStdDev, sqrt(2.0 * log(rgba.a / minAlpha)));");
  // J counts pixels to the left and down, the offset of a corner to the right and up.
  return patched(
    tight,
    "vec2 ndcOffset = (2.0 / scaledRenderSize) * pixelOffset;",
    `vec2 ndcOffset = (2.0 / scaledRenderSize) * pixelOffset;
    float depth = -viewCenter.z;
    vec2 withDepth = -vec2(dot(J[0], cov3D[2]), dot(J[1], cov3D[2]));
    vec2 slope = vec2(d * withDepth.x - b * withDepth.y, a * withDepth.y - b * withDepth.x) / max(a * d - b * b, LEAST_DETERMINANT);
    float deviation = sqrt(max(dot(slope, withDepth), 1e-20));
    vInverseDepth = 1.0 / depth + dot(slope, pixelOffset) * min(STEEPEST * depth / deviation, 1.0) / (depth * depth);
    vec4 turn = quatQuat(renderToViewQuat, quaternion);
    vec3 shortest = scales.x <= min(scales.y, scales.z) ? vec3(1.0, 0.0, 0.0) : scales.y <= scales.z ? vec3(0.0, 1.0, 0.0) : vec3(0.0, 0.0, 1.0);
    vec3 axis = quatVec(turn, shortest);
    float least = min(scales.x, min(scales.y, scales.z));
    float middle = max(min(scales.x, scales.y), min(max(scales.x, scales.y), scales.z));
    vAxis = (dot(axis, viewCenter) > 0.0 ? -axis : axis) * clamp(1.0 - least / max(middle, 1e-20), 0.0, 1.0);`,
  );
}

/** Spark's fragment program with the largest alpha of the rasteriser, and passes that blend 1 / depth (1) or axes (2). */
export function splatFragment(original: string): string {
  const declared = patched(
    original,
    "in vec2 vSplatUv;",
    "in vec2 vSplatUv;\nin float vInverseDepth;\nflat in vec3 vAxis;\nuniform float uPass;\nuniform float uDepthUnit;",
  );
  const held = patched(declared, "if (rgba.a < minAlpha) {", "rgba.a = min(rgba.a, 0.999);\n    if (rgba.a < minAlpha) {");
  return patched(
    held,
    "fragColor = vec4(rgba.rgb * rgba.a, rgba.a);",
    `vec3 blended = uPass > 1.5 ? vAxis : uPass > 0.5 ? vec3(vInverseDepth * uDepthUnit, 0.0, 0.0) : rgba.rgb;
    fragColor = vec4(blended * rgba.a, rgba.a);`,
  );
}

const DEPTH_OUTPUT = `
uniform float uPass;
uniform float uDepthUnit;
in float vDepth;
out vec4 fragColor;
void show(vec3 rgb) {
  fragColor = vec4(uPass > 1.5 ? vec3(0.0) : uPass > 0.5 ? vec3(uDepthUnit / vDepth, 0.0, 0.0) : rgb, 1.0);
}`;

export const POINT_VERTEX = `
in vec3 color;
uniform vec3 uLow;
uniform vec3 uExtent;
uniform float uDiameter; // in the world
uniform vec2 uPixels; // least and largest size
uniform float uFocal; // in pixels of what is drawn
out vec3 vColor;
out float vDepth;
void main() {
  vec4 view = viewMatrix * vec4(uLow + position * uExtent, 1.0);
  gl_Position = projectionMatrix * view;
  vDepth = -view.z;
  gl_PointSize = clamp(uDiameter * uFocal / max(vDepth, 1e-9), uPixels.x, uPixels.y);
  vColor = color;
}`;

export const POINT_FRAGMENT = `
in vec3 vColor;
${DEPTH_OUTPUT}
void main() {
  vec2 d = gl_PointCoord - 0.5;
  if (dot(d, d) > 0.25) discard;
  show(vColor);
}`;

export const MESH_VERTEX = `
in vec3 color;
uniform vec3 uLow;
uniform vec3 uExtent;
out vec3 vColor;
out vec3 vView;
out float vDepth;
void main() {
  vec4 view = viewMatrix * vec4(uLow + position * uExtent, 1.0);
  gl_Position = projectionMatrix * view;
  vView = view.xyz;
  vDepth = -view.z;
  vColor = color;
}`;

export const MESH_FRAGMENT = `
in vec3 vColor;
in vec3 vView;
${DEPTH_OUTPUT}
void main() {
  vec3 normal = normalize(cross(dFdx(vView), dFdy(vView)));
  float facing = abs(dot(normal, normalize(vView)));
  show(vColor * (0.72 + 0.28 * facing));
}`;

/** Lines of one width on the screen, with soft edges: each instance is a segment, drawn as a quad. */
export const LINE_VERTEX = `
in vec3 start;
in vec3 end;
in float owner;
uniform vec2 uWindow; // px
uniform float uWidth; // px
uniform float uNear;
out float vAcross;
out float vHalf;
flat out float vOwner;
void main() {
  vec4 a = viewMatrix * vec4(start, 1.0);
  vec4 b = viewMatrix * vec4(end, 1.0);
  vOwner = owner;
  if (a.z > -uNear && b.z > -uNear) { gl_Position = vec4(0.0, 0.0, 2.0, 1.0); return; }
  if (a.z > -uNear) a = mix(a, b, (a.z + uNear) / (a.z - b.z));
  if (b.z > -uNear) b = mix(b, a, (b.z + uNear) / (b.z - a.z));
  vec4 ca = projectionMatrix * a;
  vec4 cb = projectionMatrix * b;
  vec2 along = (cb.xy / cb.w - ca.xy / ca.w) * uWindow;
  along = length(along) > 1e-6 ? normalize(along) : vec2(1.0, 0.0);
  vHalf = 0.5 * uWidth + 1.0; // one pixel more, for the soft edge
  vec4 clip = position.x < 0.5 ? ca : cb;
  vec2 offset = (along * (position.x * 2.0 - 1.0) * 0.5 * uWidth + vec2(-along.y, along.x) * position.y * vHalf) * 2.0 / uWindow;
  gl_Position = clip + vec4(offset * clip.w, 0.0, 0.0);
  vAcross = position.y * vHalf;
}`;

export const LINE_FRAGMENT = `
in float vAcross;
in float vHalf;
flat in float vOwner;
uniform float uWidth;
uniform float uChosen;
uniform vec3 uColor;
uniform vec3 uChosenColor;
uniform float uOpacity;
uniform sampler2D uDepthMap;
uniform float uHideBehind; // 0: the depth buffer does it
uniform float uDepthUnit;
out vec4 fragColor;
void main() {
  float edge = clamp(0.5 * uWidth + 0.5 - abs(vAcross), 0.0, 1.0);
  bool chosen = abs(vOwner - uChosen) < 0.5;
  if (uHideBehind > 0.5) {
    vec4 seen = texelFetch(uDepthMap, ivec2(gl_FragCoord.xy), 0);
    if (seen.a > 0.5 && uDepthUnit * seen.a / max(seen.r, 1e-20) * gl_FragCoord.w < 1.0) discard;
  }
  float alpha = edge * (chosen ? 1.0 : uOpacity);
  if (alpha < 0.02) discard;
  fragColor = vec4((chosen ? uChosenColor : uColor) * alpha, alpha);
}`;

export const PHOTO_VERTEX = `
out vec2 vUv;
void main() {
  vUv = uv;
  gl_Position = projectionMatrix * viewMatrix * modelMatrix * vec4(position, 1.0);
}`;

export const PHOTO_FRAGMENT = `
in vec2 vUv;
uniform sampler2D uPhoto;
uniform float uLoaded;
uniform vec3 uTint;
uniform float uTintShare;
uniform sampler2D uDepthMap;
uniform float uHideBehind;
uniform float uDepthUnit;
out vec4 fragColor;
void main() {
  if (uLoaded < 0.5) discard;
  if (uHideBehind > 0.5) {
    vec4 seen = texelFetch(uDepthMap, ivec2(gl_FragCoord.xy), 0);
    if (seen.a > 0.5 && uDepthUnit * seen.a / max(seen.r, 1e-20) * gl_FragCoord.w < 1.0) discard;
  }
  vec3 rgb = texture(uPhoto, vUv).rgb;
  if (!gl_FrontFacing) rgb = mix(rgb, vec3(0.08, 0.09, 0.11), 0.72); // the back of the print
  fragColor = vec4(mix(rgb, uTint, uTintShare), 1.0);
}`;

export const SCREEN_VERTEX = `
void main() { gl_Position = vec4(position.xy, 0.0, 1.0); }`;

/**
 * Depth by a ramp of colours, or normals as colours 0.5 + 0.5 n in the axes of the world: as in `render.render_views`, the
 * blended axes of the Gaussians, and with a tenth of the weight the plane fitted to 1 / depth in 5 x 5 pixels of one surface.
 */
export const SCREEN_FRAGMENT = `
uniform sampler2D uDepthMap;
uniform sampler2D uAxisMap; // in three's axes of the camera
uniform sampler2D uRamp;
uniform float uNormals;
uniform vec2 uRange;
uniform vec3 uBackground;
uniform vec4 uIntrinsics; // fx, fy, cx, cy in pixels of the map, v down
uniform vec2 uSize;
uniform int uStep; // px between the depths that a normal comes from
uniform float uDepthUnit;
uniform mat3 uWorldFromCam;
out vec4 fragColor;
const float SOLID = 0.5;
const float SAME_SURFACE = 0.05;
const float OF_DEPTH = 0.1;

/** unit / depth, or -1 where little is. */
float inverseAt(ivec2 p) {
  if (any(lessThan(p, ivec2(0))) || any(greaterThanEqual(p, ivec2(uSize)))) return -1.0;
  vec4 seen = texelFetch(uDepthMap, p, 0);
  return seen.a >= SOLID && seen.r > 0.0 ? seen.r / seen.a : -1.0;
}

vec3 normalAt(ivec2 p, float inverse) {
  float n = 0.0, su = 0.0, sv = 0.0, suu = 0.0, suv = 0.0, svv = 0.0, sq = 0.0, suq = 0.0, svq = 0.0;
  for (int j = -2; j <= 2; j++) {
    for (int i = -2; i <= 2; i++) {
      float q = inverseAt(p + uStep * ivec2(i, -j)) / inverse - 1.0; // rows of the map count upwards
      if (abs(q) > SAME_SURFACE) continue;
      float u = float(i), v = float(j);
      n += 1.0; su += u; sv += v; suu += u * u; suv += u * v; svv += v * v; sq += q; suq += u * q; svq += v * q;
    }
  }
  vec3 row0 = vec3(suu * svv - suv * suv, suv * sv - su * svv, su * suv - suu * sv);
  float determinant = dot(row0, vec3(n, su, sv));
  if (n < 6.0 || determinant < 1.0) return vec3(0.0);
  float e0 = dot(row0, vec3(sq, suq, svq)) / determinant;
  float e1 = (row0.y * sq + (n * svv - sv * sv) * suq + (su * sv - n * suv) * svq) / determinant / float(uStep);
  float e2 = (row0.z * sq + (su * sv - n * suv) * suq + (n * suu - su * su) * svq) / determinant / float(uStep);
  vec2 uv = vec2(float(p.x) + 0.5, uSize.y - float(p.y) - 0.5) - uIntrinsics.zw;
  return -normalize(vec3(uIntrinsics.xy * vec2(e1, e2), 1.0 + e0 - dot(vec2(e1, e2), uv)));
}

void main() {
  ivec2 p = ivec2(gl_FragCoord.xy);
  float inverse = inverseAt(p);
  float alpha = inverse < 0.0 ? 0.0 : clamp(4.0 * (texelFetch(uDepthMap, p, 0).a - SOLID), 0.0, 1.0);
  vec3 rgb = vec3(0.0);
  if (inverse > 0.0 && uNormals < 0.5) {
    float t = clamp((uDepthUnit / inverse - uRange.x) / (uRange.y - uRange.x), 0.0, 1.0);
    rgb = texture(uRamp, vec2(t, 0.5)).rgb;
  } else if (inverse > 0.0) {
    vec4 axis = texelFetch(uAxisMap, p, 0);
    vec3 normal = axis.xyz * vec3(1.0, -1.0, -1.0) / max(axis.a, SOLID) + OF_DEPTH * normalAt(p, inverse);
    if (length(normal) <= 1e-3) alpha = 0.0;
    rgb = 0.5 + 0.5 * (uWorldFromCam * normalize(normal));
  }
  fragColor = vec4(mix(uBackground, rgb, alpha), 1.0);
}`;
