// The pages, built into the gateway's package; each asset also packed, so that the gateway need not.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig } from "vite";

const target = join(import.meta.dirname, "..", "api", "web");

export default defineConfig({
  // Relative to the page's <base>, which the gateway sets: behind a proxy there is a prefix.
  base: "./",
  build: {
    outDir: target,
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    // A `data:` address would need a wider content security policy.
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 3000,
    rollupOptions: { input: ["index.html", "view.html"] },
  },
  plugins: [
    {
      name: "pack",
      closeBundle() {
        const folder = join(target, "assets");
        for (const name of readdirSync(folder)) {
          writeFileSync(join(folder, `${name}.gz`), gzipSync(readFileSync(join(folder, name)), { level: 9 }));
        }
      },
    },
  ],
});
