// The input cameras as small pyramids with their photos, and which of them a ray meets.
import * as THREE from "three";
import type { CameraData } from "./data";
import * as shaders from "./shaders";
import { type View, forward, viewOfCamera } from "./view";

const ACCENT = "#7fd1ff";
const CHOSEN = "#ffd166";

export class Frusta {
  readonly group = new THREE.Group();
  private readonly views: View[];
  private readonly size: number;
  private readonly lines: THREE.ShaderMaterial;
  private readonly photos: (THREE.Mesh<THREE.BufferGeometry, THREE.ShaderMaterial> | null)[];
  private photosShown = true;

  constructor(
    cameras: readonly CameraData[],
    shared: Record<string, THREE.IUniform>,
    private readonly changed: () => void,
  ) {
    this.views = cameras.map(viewOfCamera);
    this.size = frustumSize(this.views);
    this.lines = this.addLines(shared);
    this.photos = cameras.map((camera, i) => (camera.photo ? this.addPhoto(i, camera.photo, shared) : null));
  }

  setPhotos(visible: boolean): void {
    this.photosShown = visible;
  }

  /** Hide the photos that would stand between the eye and the scene: of cameras that the eye is in. */
  seenFrom(eye: THREE.Vector3): void {
    this.photos.forEach((photo, i) => {
      if (photo) photo.visible = this.photosShown && this.views[i].position.distanceTo(eye) > this.size;
    });
  }

  /** Highlight one camera; -1 for none. */
  choose(index: number): void {
    if (this.lines.uniforms.uChosen.value === index) return;
    this.lines.uniforms.uChosen.value = index;
    this.photos.forEach((photo, i) => {
      if (photo) photo.material.uniforms.uTintShare.value = i === index ? 0.12 : 0;
    });
    this.changed();
  }

  /** The nearest camera whose picture or pyramid a ray meets, and how far along the ray; null where there is none. */
  hit(origin: THREE.Vector3, direction: THREE.Vector3): { index: number; distance: number } | null {
    let nearest: { index: number; distance: number } | null = null;
    this.views.forEach((view, index) => {
      const inverse = view.rotation.clone().invert();
      const o = origin.clone().sub(view.position).applyQuaternion(inverse);
      const d = direction.clone().applyQuaternion(inverse);
      const distance = (this.size - o.z) / d.z;
      if (!(distance > 0) || (nearest && nearest.distance <= distance)) return;
      const { lens } = view;
      const u = (lens.fx * (o.x + distance * d.x)) / this.size + lens.cx;
      const v = (lens.fy * (o.y + distance * d.y)) / this.size + lens.cy;
      if (u >= 0 && v >= 0 && u <= lens.w && v <= lens.h) nearest = { index, distance };
    });
    return nearest;
  }

  private corner(view: View, u: number, v: number): THREE.Vector3 {
    const { lens } = view;
    return new THREE.Vector3((u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy, 1)
      .multiplyScalar(this.size)
      .applyQuaternion(view.rotation)
      .add(view.position);
  }

  private addLines(shared: Record<string, THREE.IUniform>): THREE.ShaderMaterial {
    const start: number[] = [];
    const end: number[] = [];
    const owner: number[] = [];
    const segment = (a: THREE.Vector3, b: THREE.Vector3, i: number) => {
      start.push(a.x, a.y, a.z);
      end.push(b.x, b.y, b.z);
      owner.push(i);
    };
    this.views.forEach((view, i) => {
      const { w, h } = view.lens;
      const corners = [this.corner(view, 0, 0), this.corner(view, w, 0), this.corner(view, w, h), this.corner(view, 0, h)];
      corners.forEach((corner, k) => {
        segment(corner, corners[(k + 1) % 4], i);
        segment(view.position, corner, i);
      });
      const tip = this.corner(view, w / 2, -0.16 * Math.min(w, h)); // the roof shows which way is up
      segment(this.corner(view, 0.36 * w, 0), tip, i);
      segment(tip, this.corner(view, 0.64 * w, 0), i);
    });
    const geometry = new THREE.InstancedBufferGeometry();
    geometry.setAttribute("position", new THREE.Float32BufferAttribute([0, -1, 0, 1, -1, 0, 1, 1, 0, 0, 1, 0], 3));
    geometry.setIndex([0, 1, 2, 0, 2, 3]);
    geometry.setAttribute("start", new THREE.InstancedBufferAttribute(new Float32Array(start), 3));
    geometry.setAttribute("end", new THREE.InstancedBufferAttribute(new Float32Array(end), 3));
    geometry.setAttribute("owner", new THREE.InstancedBufferAttribute(new Float32Array(owner), 1));
    geometry.instanceCount = owner.length;
    const material = new THREE.ShaderMaterial({
      glslVersion: THREE.GLSL3,
      vertexShader: shaders.LINE_VERTEX,
      fragmentShader: shaders.LINE_FRAGMENT,
      transparent: true,
      premultipliedAlpha: true,
      side: THREE.DoubleSide,
      uniforms: {
        ...hiding(shared),
        uWindow: { value: new THREE.Vector2(1, 1) },
        uWidth: { value: 1.4 },
        uNear: { value: 0.01 },
        uChosen: { value: -1 },
        uColor: { value: srgb(ACCENT) },
        uChosenColor: { value: srgb(CHOSEN) },
        uOpacity: { value: 0.85 },
      },
    });
    const lines = new THREE.Mesh(geometry, material);
    lines.frustumCulled = false;
    lines.renderOrder = 1;
    this.group.add(lines);
    return material;
  }

  private addPhoto(i: number, url: string, shared: Record<string, THREE.IUniform>) {
    const view = this.views[i];
    const { w, h } = view.lens;
    const corners = [this.corner(view, 0, 0), this.corner(view, 0, h), this.corner(view, w, h), this.corner(view, w, 0)];
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.Float32BufferAttribute(corners.flatMap((c) => [c.x, c.y, c.z]), 3));
    geometry.setAttribute("uv", new THREE.Float32BufferAttribute([0, 1, 0, 0, 1, 0, 1, 1], 2));
    geometry.setIndex([0, 1, 2, 0, 2, 3]);
    const material = new THREE.ShaderMaterial({
      glslVersion: THREE.GLSL3,
      vertexShader: shaders.PHOTO_VERTEX,
      fragmentShader: shaders.PHOTO_FRAGMENT,
      side: THREE.DoubleSide,
      polygonOffset: true, // behind its own frame
      polygonOffsetFactor: 2,
      polygonOffsetUnits: 4,
      uniforms: {
        ...hiding(shared),
        uPhoto: { value: null },
        uLoaded: { value: 0 },
        uTint: { value: srgb(CHOSEN) },
        uTintShare: { value: 0 },
      },
    });
    const image = new Image();
    image.onload = () => {
      const texture = new THREE.Texture(image);
      texture.minFilter = THREE.LinearMipmapLinearFilter;
      texture.anisotropy = 4;
      texture.needsUpdate = true;
      material.uniforms.uPhoto.value = texture;
      material.uniforms.uLoaded.value = 1;
      this.changed();
    };
    image.src = url;
    const photo = new THREE.Mesh(geometry as THREE.BufferGeometry, material);
    photo.frustumCulled = false;
    this.group.add(photo);
    return photo;
  }
}

function hiding(shared: Record<string, THREE.IUniform>): Record<string, THREE.IUniform> {
  return { uDepthMap: { value: null }, uHideBehind: { value: 0 }, uDepthUnit: shared.uDepthUnit };
}

function srgb(color: string): THREE.Vector3 {
  const { r, g, b } = new THREE.Color(color).getRGB({ r: 0, g: 0, b: 0 }, THREE.SRGBColorSpace);
  return new THREE.Vector3(r, g, b);
}

/** As large as the cameras' spacing allows, but neither lost in the scene nor in its way. */
function frustumSize(views: readonly View[]): number {
  const focus = median(views.map((view) => view.focus));
  if (views.length < 2) return 0.08 * focus;
  const spacing = median(
    views.map((a) => Math.min(...views.filter((b) => b !== a).map((b) => a.position.distanceTo(b.position) + 1e-3 * turn(a, b) * focus))),
  );
  return Math.min(Math.max(0.4 * spacing, 0.025 * focus), 0.085 * focus);
}

function turn(a: View, b: View): number {
  return forward(a).angleTo(forward(b));
}

function median(values: number[]): number {
  return [...values].sort((x, y) => x - y)[Math.floor(values.length / 2)];
}
