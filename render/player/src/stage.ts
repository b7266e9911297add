// What is drawn: Gaussians, points, mesh and frusta, into the window, and depth into a map of floats for everything that needs
// to know where things are.
import { SparkRenderer, SplatFileType, SplatMesh } from "@sparkjsdev/spark";
import * as THREE from "three";
import type { SceneData } from "./data";
import { packedHarmonics } from "./harmonics";
import { Motion } from "./motion";
import { type Shown, shownBy } from "./picking";
import { depthRamp } from "./ramp";
import * as shaders from "./shaders";
import { type View, apply, copyView, fitted, unproject } from "./view";

export type Mode = "rgb" | "depth" | "normal";
export const MODES: readonly Mode[] = ["rgb", "depth", "normal"];

/** Constants of the rasteriser: blur of 0.3 px^2, alpha from 1/255, hence 3.33 deviations for an opaque Gaussian. */
const EPS_2D = 0.3;
const MIN_ALPHA = 1 / 255;
const MAX_DEVIATIONS = Math.sqrt(2 * Math.log(255));
/** Where alpha is less, nothing is said to be there. */
const SOLID = 0.5;
const NEAR = 0.01;
const FAR_RADII = 1e5;

export class Stage {
  readonly renderer: THREE.WebGLRenderer;
  readonly camera = new THREE.PerspectiveCamera();
  readonly world = new THREE.Scene();
  /** Frusta and photos: drawn before the world, which covers what lies behind it. */
  readonly overlay = new THREE.Scene();
  /** Uniforms that all programs share. */
  readonly shared;
  points: THREE.Points | null = null;
  mesh: THREE.Mesh | null = null;
  splats: SplatMesh | null = null;
  motion: Motion | null = null;
  /** Pictures drawn since the start. */
  drawn = 0;
  mode: Mode = "rgb";
  depthRange: [number, number] = [0, 1];
  onDepthRange: (range: [number, number]) => void = () => {};
  onFrame: (view: View) => void = () => {};

  private spark: SparkRenderer | null = null;
  private view: View;
  private readonly background = new THREE.Color("#0d1014");
  private readonly depthType: THREE.TextureDataType;
  private readonly depthMap: THREE.WebGLRenderTarget;
  private readonly axisMap: THREE.WebGLRenderTarget;
  private readonly screen: THREE.Mesh<THREE.BufferGeometry, THREE.ShaderMaterial>;
  private frame = 0;
  private moved = true;
  private settling = 0;
  private readonly near: number;
  private readonly far: number;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly data: SceneData,
    view: View,
  ) {
    this.view = copyView(view);
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: false, powerPreference: "high-performance" });
    this.renderer.autoClear = false;
    this.near = Math.min(NEAR, 2e-3 * data.bounds.radius);
    this.far = FAR_RADII * data.bounds.radius;
    this.shared = { uPass: { value: 0 }, uDepthUnit: { value: data.bounds.radius } };
    this.depthType = this.renderer.extensions.has("EXT_float_blend") ? THREE.FloatType : THREE.HalfFloatType;
    this.depthMap = this.newMap(1, 1);
    this.axisMap = this.newMap(1, 1);
    this.screen = this.newScreen();
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
  }

  // Size

  get width(): number {
    return Math.max(1, this.canvas.clientWidth);
  }

  get height(): number {
    return Math.max(1, this.canvas.clientHeight);
  }

  private resize(): void {
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    this.renderer.setSize(this.width, this.height, false);
    this.setView(this.view);
  }

  private get buffer(): THREE.Vector2 {
    return this.renderer.getDrawingBufferSize(new THREE.Vector2());
  }

  private newMap(width: number, height: number): THREE.WebGLRenderTarget {
    return new THREE.WebGLRenderTarget(width, height, {
      type: this.depthType,
      format: THREE.RGBAFormat,
      minFilter: THREE.NearestFilter,
      magFilter: THREE.NearestFilter,
    });
  }

  // Layers

  async addGaussians(bytes: Uint8Array, moves: Uint8Array | null): Promise<void> {
    const { gaussians, motion } = this.data;
    if (!gaussians) return;
    this.spark = new SparkRenderer({
      renderer: this.renderer,
      onDirty: () => this.invalidate(),
      autoUpdate: false,
      accumExtSplats: true,
      enableLod: false,
      sortRadial: false,
      preBlurAmount: EPS_2D,
      blurAmount: 0,
      minAlpha: MIN_ALPHA,
      maxStdDev: MAX_DEVIATIONS,
      maxPixelRadius: 1e5,
      clipXY: 100,
      extraUniforms: this.shared,
    });
    this.spark.material.vertexShader = shaders.splatVertex(this.spark.material.vertexShader);
    this.spark.material.fragmentShader = shaders.splatFragment(this.spark.material.fragmentShader);
    const mesh = new SplatMesh({
      fileBytes: bytes,
      fileType: gaussians.format === "spz" ? SplatFileType.SPZ : SplatFileType.PLY,
      extSplats: true,
      lod: false,
      editable: false,
      raycastable: false,
    });
    await mesh.initialized;
    const count = mesh.splats?.getNumSplats() ?? 0;
    if (count !== gaussians.count) throw new Error(`${count} of ${gaussians.count} Gaussians could be read`);
    if (gaussians.format === "spz" && gaussians.sh_degree > 0 && mesh.extSplats) {
      Object.assign(mesh.extSplats.extra, await packedHarmonics(bytes, count, gaussians.sh_degree));
    }
    if (motion && moves && mesh.extSplats) {
      this.motion = await Motion.read(moves, motion, gaussians);
      this.motion.moveWhenRead(mesh.extSplats);
    }
    mesh.position.set(...gaussians.origin);
    mesh.scale.setScalar(gaussians.unit);
    if (gaussians.axes[1] < 0) mesh.quaternion.set(1, 0, 0, 0); // y and z point the other way in the file
    this.splats = mesh;
    this.world.add(this.spark, mesh);
    this.touch();
  }

  addPoints(bytes: Uint8Array): void {
    const { points } = this.data;
    if (!points) return;
    const geometry = quantised(bytes, points.count);
    const material = new THREE.ShaderMaterial({
      glslVersion: THREE.GLSL3,
      vertexShader: shaders.POINT_VERTEX,
      fragmentShader: shaders.POINT_FRAGMENT,
      uniforms: {
        ...this.shared,
        ...extent(points.low, points.high),
        uDiameter: { value: 1.9 * points.spacing },
        uPixels: { value: new THREE.Vector2(1.5, 24) },
        uFocal: { value: 1 },
      },
    });
    this.points = new THREE.Points(geometry, material);
    this.points.frustumCulled = false;
    this.world.add(this.points);
  }

  addMesh(bytes: Uint8Array): void {
    const { mesh } = this.data;
    if (!mesh) return;
    const geometry = quantised(bytes, mesh.vertices);
    const start = 9 * mesh.vertices;
    geometry.setIndex(new THREE.BufferAttribute(new Uint32Array(bytes.slice(start, start + 12 * mesh.faces).buffer), 1));
    const material = new THREE.ShaderMaterial({
      glslVersion: THREE.GLSL3,
      vertexShader: shaders.MESH_VERTEX,
      fragmentShader: shaders.MESH_FRAGMENT,
      uniforms: { ...this.shared, ...extent(mesh.low, mesh.high) },
      side: THREE.DoubleSide,
    });
    this.mesh = new THREE.Mesh(geometry, material);
    this.mesh.frustumCulled = false;
    this.mesh.visible = false;
    this.world.add(this.mesh);
  }

  // State

  setView(view: View): void {
    this.view = copyView(view);
    apply(this.view, this.camera, this.width, this.height, this.near, this.far);
    this.touch();
  }

  setBackground(color: string): void {
    this.background.set(color);
    this.invalidate();
  }

  setMode(mode: Mode): void {
    this.mode = mode;
    this.touch();
  }

  /** Where Gaussians that move are from now on; `touch` draws them there. */
  setTime(time_s: number): void {
    this.motion?.set(time_s);
  }

  /** The camera or the Gaussians changed: their order is to be found anew. */
  touch(): void {
    this.moved = true;
    this.invalidate();
  }

  invalidate(): void {
    if (this.frame === 0) this.frame = requestAnimationFrame(() => this.draw());
  }

  // Drawing

  private draw(): void {
    this.frame = 0;
    if (this.settling > 0) return; // which draws at its end
    if (this.moved) {
      this.moved = false;
      void this.spark?.update({ scene: this.world, camera: this.camera });
      this.afterRest();
    }
    this.onFrame(this.view);
    this.render(true);
  }

  private restTimer = 0;

  /** What costs a moment waits until the camera has come to rest. */
  private afterRest(): void {
    window.clearTimeout(this.restTimer);
    this.restTimer = window.setTimeout(() => {
      if (this.mode === "depth") this.findDepthRange();
    }, 120);
  }

  private render(overlay: boolean): void {
    const { renderer } = this;
    this.drawn += 1;
    renderer.setRenderTarget(null);
    renderer.setClearColor(this.background, 1); // anew: what was set is in the colours of the target before
    renderer.clear();
    this.setFocal(this.buffer.y);
    if (this.mode === "rgb") {
      if (overlay) {
        this.hideOverlayBehind(false);
        renderer.render(this.overlay, this.camera);
      }
      renderer.render(this.world, this.camera);
      return;
    }
    this.renderMap("depthMap", 1);
    if (this.mode === "normal") this.renderMap("axisMap", 2);
    this.setScreen();
    renderer.render(this.screen, this.camera);
    if (overlay) {
      this.hideOverlayBehind(true);
      renderer.render(this.overlay, this.camera);
    }
  }

  /** Draw 1 / depth (pass 1) or axes (pass 2) of the window. */
  private renderMap(name: "depthMap" | "axisMap", pass: 1 | 2): void {
    const { x, y } = this.buffer;
    const map = this[name];
    if (map.width !== x || map.height !== y) map.setSize(x, y);
    map.scissorTest = false;
    this.into(map, pass);
  }

  private into(target: THREE.WebGLRenderTarget, pass: 1 | 2): void {
    const { renderer } = this;
    this.shared.uPass.value = pass;
    renderer.setRenderTarget(target);
    renderer.setClearColor(0x000000, 0);
    renderer.clear();
    renderer.render(this.world, this.camera);
    renderer.setRenderTarget(null);
    this.shared.uPass.value = 0;
  }

  private setFocal(height: number): void {
    const material = this.points?.material as THREE.ShaderMaterial | undefined;
    if (material) material.uniforms.uFocal.value = 0.5 * height * this.camera.projectionMatrix.elements[5];
  }

  /** In depth and normals nothing is in the depth buffer; the map of depth hides what lies behind. */
  private hideOverlayBehind(byMap: boolean): void {
    this.overlay.traverse((node) => {
      const material = (node as THREE.Mesh).material as THREE.ShaderMaterial | undefined;
      if (!material?.uniforms?.uHideBehind) return;
      material.uniforms.uHideBehind.value = byMap ? 1 : 0;
      material.uniforms.uDepthMap.value = byMap ? this.depthMap.texture : null;
      if (material.uniforms.uWindow) material.uniforms.uWindow.value.copy(this.buffer);
      if (material.uniforms.uWidth) material.uniforms.uWidth.value = 1.4 * this.renderer.getPixelRatio();
      if (material.uniforms.uNear) material.uniforms.uNear.value = this.near;
    });
  }

  private newScreen(): THREE.Mesh<THREE.BufferGeometry, THREE.ShaderMaterial> {
    const material = new THREE.ShaderMaterial({
      glslVersion: THREE.GLSL3,
      vertexShader: shaders.SCREEN_VERTEX,
      fragmentShader: shaders.SCREEN_FRAGMENT,
      depthTest: false,
      depthWrite: false,
      uniforms: {
        uDepthMap: { value: null },
        uAxisMap: { value: null },
        uRamp: { value: rampTexture() },
        uNormals: { value: 0 },
        uRange: { value: new THREE.Vector2(0, 1) },
        uBackground: { value: new THREE.Vector3() },
        uIntrinsics: { value: new THREE.Vector4() },
        uSize: { value: new THREE.Vector2() },
        uStep: { value: 1 },
        uWorldFromCam: { value: new THREE.Matrix3() },
        uDepthUnit: this.shared.uDepthUnit,
      },
    });
    const screen = new THREE.Mesh(new THREE.PlaneGeometry(2, 2) as THREE.BufferGeometry, material);
    screen.frustumCulled = false;
    return screen;
  }

  private setScreen(): void {
    const { uniforms } = this.screen.material;
    const { x, y } = this.buffer;
    const k = fitted(this.view.lens, x, y);
    const rgb = this.background.getRGB({ r: 0, g: 0, b: 0 }, THREE.SRGBColorSpace);
    uniforms.uDepthMap.value = this.depthMap.texture;
    uniforms.uAxisMap.value = this.axisMap.texture;
    uniforms.uNormals.value = this.mode === "normal" ? 1 : 0;
    uniforms.uRange.value.set(...this.depthRange);
    uniforms.uBackground.value.set(rgb.r, rgb.g, rgb.b);
    uniforms.uIntrinsics.value.set(k.fx, k.fy, k.cx, k.cy);
    uniforms.uSize.value.set(x, y);
    uniforms.uStep.value = Math.max(1, Math.round(this.renderer.getPixelRatio()));
    uniforms.uWorldFromCam.value.setFromMatrix4(new THREE.Matrix4().makeRotationFromQuaternion(this.view.rotation));
  }

  // Questions

  /** The depth that a share of a coarse picture lies before: near and far end of the ramp. */
  private findDepthRange(): void {
    const w = 96;
    const h = Math.max(1, Math.round((w * this.height) / this.width));
    const depths = this.readDepth(w, h).filter((d) => d > 0).sort();
    if (depths.length < 8) return;
    const at = (share: number) => depths[Math.round(share * (depths.length - 1))];
    const low = at(0.01);
    const high = Math.max(at(0.97), low * 1.001);
    const span = this.depthRange[1] - this.depthRange[0];
    const change = Math.max(Math.abs(low - this.depthRange[0]), Math.abs(high - this.depthRange[1]));
    if (change < 0.03 * span) return;
    this.depthRange = [low, high];
    this.onDepthRange(this.depthRange);
    this.invalidate();
  }

  /** z-depths of a picture of the window at another size, row by row from below; -1 where nothing is. */
  readDepth(width: number, height: number): Float32Array {
    const target = this.newMap(width, height);
    this.setFocal(height);
    this.into(target, 1);
    const depths = this.readMap(target, 0, 0, width, height);
    target.dispose();
    return depths;
  }

  private readMap(target: THREE.WebGLRenderTarget, x: number, y: number, width: number, height: number): Float32Array {
    const half = this.depthType === THREE.HalfFloatType;
    const raw = half ? new Uint16Array(4 * width * height) : new Float32Array(4 * width * height);
    this.renderer.readRenderTargetPixels(target, x, y, width, height, raw);
    const value = (i: number) => (half ? THREE.DataUtils.fromHalfFloat(raw[i]) : raw[i]);
    return Float32Array.from({ length: width * height }, (_, i) => {
      const alpha = value(4 * i + 3);
      const inverse = value(4 * i);
      return alpha >= SOLID && inverse > 0 ? (alpha / inverse) * this.shared.uDepthUnit.value : -1;
    });
  }

  /** World point that a pixel of the window (CSS pixels from its corner) shows, or null. */
  pointAt(u: number, v: number): THREE.Vector3 | null {
    const depth = this.depthAt(u, v);
    return depth === null ? null : unproject(this.view, this.width, this.height, u, v, depth);
  }

  /** The Gaussian that a pixel of the window shows at a time, and the place on it; null where nothing moves or is. */
  gaussianAt(u: number, v: number, time_s: number): Shown | null {
    const { motion, splats, view } = this;
    if (!motion || !splats?.visible) return null;
    const direction = unproject(view, this.width, this.height, u, v, 1).sub(view.position);
    return shownBy(splats, motion, motion.posesAt(time_s), {
      origin: motion.toFile(view.position),
      direction: motion.directionToFile(direction),
      blur: Math.sqrt(EPS_2D) / fitted(view.lens, this.width, this.height).fx / this.data.gaussians!.unit,
    });
  }

  depthAt(u: number, v: number): number | null {
    const { x: w, y: h } = this.buffer;
    const x = Math.floor((u / this.width) * w);
    const y = h - 1 - Math.floor((v / this.height) * h);
    if (x < 0 || y < 0 || x >= w || y >= h) return null;
    if (this.depthMap.width !== w || this.depthMap.height !== h) this.depthMap.setSize(w, h);
    this.depthMap.scissor.set(x, y, 1, 1);
    this.depthMap.scissorTest = true;
    const pixels = (this.points?.material as THREE.ShaderMaterial | undefined)?.uniforms.uPixels.value as THREE.Vector2 | undefined;
    const least = pixels?.x ?? 0;
    pixels?.setX(10); // points are easier to hit than to see
    this.setFocal(h);
    this.into(this.depthMap, 1);
    pixels?.setX(least);
    const [depth] = this.readMap(this.depthMap, x, y, 1, 1);
    this.depthMap.scissorTest = false;
    this.invalidate();
    return depth > 0 ? depth : null;
  }

  /** Wait until the Gaussians are sorted for the view, then draw. */
  async settle(overlay = true): Promise<void> {
    const { spark } = this;
    this.settling += 1;
    try {
      this.moved = false;
      if (spark) {
        while (spark.sorting || spark.sortDirty) await pause(4);
        await spark.update({ scene: this.world, camera: this.camera });
        while (spark.sorting || spark.sortDirty) await pause(4);
      }
    } finally {
      this.settling -= 1;
    }
    if (this.mode === "depth") this.findDepthRange();
    this.onFrame(this.view);
    this.render(overlay);
    if (this.moved) this.invalidate();
  }

  /** PNG of the window as data URI, without controls; with or without frusta. */
  async capture(overlay: boolean): Promise<string> {
    await this.settle(overlay);
    const url = this.canvas.toDataURL("image/png");
    if (!overlay && this.overlay.children.some((child) => child.visible)) this.invalidate();
    return url;
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Positions as 16-bit fractions of the extent, then colours, as geo4d writes points and meshes. */
function quantised(bytes: Uint8Array, count: number): THREE.BufferGeometry {
  const geometry = new THREE.BufferGeometry();
  const positions = new Uint16Array(bytes.slice(0, 6 * count).buffer);
  geometry.setAttribute("position", new THREE.BufferAttribute(positions, 3, true));
  geometry.setAttribute("color", new THREE.BufferAttribute(bytes.slice(6 * count, 9 * count), 3, true));
  return geometry;
}

function extent(low: number[], high: number[]): Record<string, THREE.IUniform> {
  const a = new THREE.Vector3(...(low as [number, number, number]));
  const b = new THREE.Vector3(...(high as [number, number, number]));
  return { uLow: { value: a }, uExtent: { value: b.sub(a) } };
}

function rampTexture(): THREE.DataTexture {
  const texture = new THREE.DataTexture(depthRamp(256), 256, 1);
  texture.minFilter = texture.magFilter = THREE.LinearFilter;
  texture.needsUpdate = true;
  return texture;
}
