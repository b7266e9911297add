// Bundles src/ and its libraries into dist/player.html, the page into which geo4d puts a scene.
//
//   npm ci && npm run check && npm run build      writes dist/player.html
//   npm run hash                                  prints the hash of the sources that the page carries
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";

const here = new URL(".", import.meta.url);
const LIBRARIES = ["three", "@sparkjsdev/spark", "fflate"];

/** SHA-256 over name and content of everything that decides what the page holds, in the order of the names. */
async function hashOfSources() {
  const files = ["build.mjs", "package-lock.json", "package.json", "tsconfig.json"];
  files.push(...(await readdir(new URL("src/", here))).map((name) => `src/${name}`));
  const hash = createHash("sha256");
  for (const file of files.sort()) {
    const text = (await readFile(new URL(file, here), "utf8")).replaceAll("\r\n", "\n");
    hash.update(`${file}\0${text}\0`);
  }
  return hash.digest("hex");
}

async function notices() {
  const texts = [];
  for (const name of LIBRARIES) {
    const folder = new URL(`node_modules/${name}/`, here);
    const { version } = JSON.parse(await readFile(new URL("package.json", folder), "utf8"));
    texts.push(`${name} ${version}\n\n${(await readFile(new URL("LICENSE", folder), "utf8")).trim()}`);
  }
  return `This page contains the following libraries.\n\n${texts.join("\n\n----\n\n")}\n`;
}

async function bundle() {
  const result = await build({
    entryPoints: [new URL("src/main.ts", here).pathname],
    bundle: true, minify: true, write: false, format: "iife", target: "es2022", charset: "ascii",
    legalComments: "none", // the whole licences stand at the top of the page
  });
  // A script element ends at the first "</script", and "<!--" changes how it is read.
  return result.outputFiles[0].text.replaceAll("</script", "<\\/script").replaceAll("<!--", "<\\!--");
}

const hash = await hashOfSources();
if (process.argv.includes("--hash")) {
  console.log(hash);
} else {
  const page = await readFile(new URL("src/player.html", here), "utf8");
  const parts = {
    "{{hash}}": hash,
    "{{notices}}": (await notices()).replaceAll("--", "- -"),
    "{{style}}": await readFile(new URL("src/style.css", here), "utf8"),
    "{{script}}": await bundle(),
  };
  let whole = page;
  for (const [mark, text] of Object.entries(parts)) {
    if (whole.split(mark).length !== 2) throw new Error(`src/player.html must have ${mark} once`);
    whole = whole.replace(mark, () => text);
  }
  await mkdir(new URL("dist/", here), { recursive: true });
  await writeFile(new URL("dist/player.html", here), whole);
  console.log(`dist/player.html: ${(whole.length / 1e6).toFixed(2)} MB, sources ${hash.slice(0, 12)}`);
}
