// What all TypeScript drivers share: the world, one line for each operation, and waiting.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

export interface World {
  address: string;
  scan: string;
  upload: string;
  upload_sha256: string;
  source_url: string;
  source_sha256: string;
  refused_url: string;
  callback_url: string;
  scored: { job_id: string; percent_opacity: number; sha256: string; size_bytes: number };
}

export const world: World = JSON.parse(readFileSync(process.argv[2]!, "utf8"));
export const scan = new Uint8Array(readFileSync(world.scan));
export const upload = new Uint8Array(readFileSync(world.upload));

const WAIT_SECONDS = 60;

/** Prints how it went. What went wrong is no reason to leave out the others. */
export async function step<T>(operation: string, run: () => Promise<T>): Promise<T | undefined> {
  try {
    const result = await run();
    console.log(JSON.stringify({ operation, ok: true, detail: "" }));
    return result;
  } catch (error) {
    const words = error instanceof Error ? `${error.name}: ${error.message}` : JSON.stringify(error);
    console.log(JSON.stringify({ operation, ok: false, detail: String(words).slice(0, 300) }));
    return undefined;
  }
}

export function require(fact: boolean, words: string): asserts fact {
  if (!fact) throw new Error(words);
}

export function equal(found: unknown, expected: unknown): void {
  const [left, right] = [JSON.stringify(found), JSON.stringify(expected)];
  if (left !== right) throw new Error(`${left} is not ${right}`);
}

/** The first answer that is not undefined. */
export async function until<T>(found: () => Promise<T | undefined>): Promise<T> {
  const deadline = Date.now() + WAIT_SECONDS * 1000;
  for (;;) {
    const answer = await found();
    if (answer !== undefined) return answer;
    if (Date.now() > deadline) throw new Error("it took too long");
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Part `number`, counted from 1, of the file to upload. */
export function partOf(partBytes: number, number: number): Uint8Array<ArrayBuffer> {
  return upload.slice((number - 1) * partBytes, number * partBytes);
}

/** A part goes to its address, which on S3 is none of the service's: no generated client is asked. */
export async function put(url: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  const answer = await fetch(url, { method: "PUT", body: bytes });
  require(answer.ok, `PUT of a part: ${answer.status}`);
}

/** What the address of a part holds beside its path. */
export function signatureOf(url: string): { expires: number; signature: string } {
  const query = new URL(url).searchParams;
  return { expires: Number(query.get("expires")), signature: query.get("signature")! };
}
