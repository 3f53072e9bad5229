// Bundles the page into ../static: app.js with its chunks, app.css, index.html, and the licences of what is in it.
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "node_modules");
const out = join(here, "..", "static");

// The page's content security policy lets no string become a function, a style element or a style attribute.
// - Annotorious brings Pixi, which makes functions of strings. Pixi's own package for pages with such a policy,
//   @pixi/unsafe-eval, replaces two methods of a class that Annotorious does not export, so they are replaced here.
// - Its Svelte writes style attributes; set through the element's style, the same is allowed.
// - OpenSeadragon adds a style element that takes the focus ring away on screens that are touched.
// The build fails where an update changes what is looked for.
const forPolicy = {
  name: "for-policy",
  setup(builder) {
    builder.onLoad({ filter: /annotorious-openseadragon\.es\.js$/ }, async ({ path }) => {
      const source = await readFile(path, "utf8");
      const checked = replaced(
        source,
        /systemCheck\(\) \{\s+if \(!\w+\(\)\)\s+throw new Error\([^;]+;\s+\}/,
        "systemCheck() {}",
      );
      const contents = replaced(
        checked,
        /syncUniforms\((\w+), (\w+), \w+\) \{\s+\(\w+\.syncUniforms\[this\.shader\.program\.id\][^;]+;\s+\}/,
        (_, group, program) =>
          `syncUniforms(${group}, ${program}) {
             pixiSyncUniforms(${group}, this.shader.program.uniformData, ${program}.uniformData, ${group}.uniforms, this.renderer);
           }`,
      );
      const styled = replaced(
        contents,
        /(\w+)\.getAttribute\((\w+)\) !== (\w+) && \1\.setAttribute\(\2, \3\)/,
        (_, node, name, value) =>
          `${name} === "style" ? (${node}.style.cssText = ${value}) : ${node}.getAttribute(${name}) !== ${value} && ${node}.setAttribute(${name}, ${value})`,
        2,
      );
      const sync = JSON.stringify(join(modules, "@pixi/unsafe-eval/lib/syncUniforms.mjs"));
      return { contents: `import { syncUniforms as pixiSyncUniforms } from ${sync};\n${styled}`, loader: "js" };
    });
    builder.onLoad({ filter: /openseadragon\/openseadragon\.js$/ }, async ({ path }) => {
      const source = await readFile(path, "utf8");
      const wanted = /!document\.querySelector\('style\[data-openseadragon-mobile-css\]'\)/;
      return { contents: replaced(source, wanted, "false"), loader: "js" };
    });
  },
};

function replaced(source, pattern, replacement, times = 1) {
  const every = new RegExp(pattern, "g");
  const found = source.match(every)?.length ?? 0;
  if (found !== times) {
    throw new Error(`build.mjs: ${pattern} was found ${found} times, not ${times}: look at the package's new version`);
  }
  return source.replace(every, replacement);
}

// Of a package that holds no licence text: whose it is, and where the text stands.
function unwritten({ author, license, repository }) {
  const by = author?.name ?? author ?? "its authors";
  const source = (repository?.url ?? "").replace(/^git\+/, "");
  return `Copyright (c) ${by}. ${source}\nThe text of this licence: https://spdx.org/licenses/${license}.html`;
}

async function licences(metafile) {
  const inputs = Object.values(metafile.outputs).flatMap((output) => Object.keys(output.inputs));
  const names = inputs.map((input) => input.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//)?.[1]).filter(Boolean);
  // What Annotorious carries inside its own file.
  const inside = ["@annotorious/annotorious", "@annotorious/core", "pixi.js"];
  const texts = [];
  for (const name of [...new Set([...names, ...inside])].sort()) {
    const folder = join(modules, name);
    const about = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
    const text = file ? await readFile(join(folder, file), "utf8") : unwritten(about);
    texts.push(`${name} ${about.version}: ${about.license}\n\n${text.trim()}\n`);
  }
  return texts.join(`\n${"-".repeat(80)}\n\n`);
}

// The chunks that app.js begins with are asked for together with it, not after it has come and was read.
async function withPreloads({ outputs }) {
  const [app] = Object.values(outputs).filter(({ entryPoint }) => entryPoint === "src/main.tsx");
  const first = app.imports.filter(({ kind }) => kind === "import-statement").map(({ path }) => basename(path));
  const links = first.map((name) => `    <link rel="modulepreload" href="/static/${name}">\n`).join("");
  const index = await readFile(join(here, "src/index.html"), "utf8");
  return replaced(index, / {4}<script type="module"/, (script) => links + script);
}

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const result = await build({
  entryPoints: { app: join(here, "src/main.tsx") },
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  jsx: "automatic",
  jsxImportSource: "preact",
  outdir: out,
  chunkNames: "[name]-[hash]",
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
  absWorkingDir: here,
  plugins: [forPolicy],
});
await writeFile(join(out, "index.html"), await withPreloads(result.metafile));
await copyFile(join(here, "src/icon.svg"), join(out, "icon.svg"));
await writeFile(join(out, "licences.txt"), await licences(result.metafile));
