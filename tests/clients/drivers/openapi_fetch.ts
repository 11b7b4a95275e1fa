// Drives openapi-fetch with the types that openapi-typescript makes.
import createClient from "openapi-fetch";
import type { components, paths } from "../build/openapi-typescript,-openapi-fetch/schema";
import { equal, partOf, put, require, scan, sha256, signatureOf, step, until, upload, world } from "./steps";

type Schemas = components["schemas"];
const client = createClient<paths>({ baseUrl: world.address });
const scored = { job_id: world.scored.job_id };

/** What came with a success. */
function ok<T>(answer: { data?: T; error?: unknown }): T {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error));
  return answer.data;
}

async function job(job_id: string): Promise<Schemas["Job"]> {
  return ok(await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id } } }));
}

async function cancelled(job_id: string): Promise<void> {
  ok(await client.POST("/v1/jobs/{job_id}/cancel", { params: { path: { job_id } } }));
  await until(async () => ((await job(job_id)).status === "cancelled" ? true : undefined));
}

/** The form as openapi-fetch's documentation has it: the body is typed, and put into a FormData by hand. */
function bodySerializer(body: object): FormData {
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) form.append(name, value);
  return form;
}

// The types say that the file is text: of `format: binary` openapi-typescript knows nothing.
const file = new Blob([scan]) as unknown as string;

const jobId = await step("form", async () => {
  const body = { file, priority: "stat", client_reference: "openapi-fetch", callback_url: world.callback_url } as const;
  const params = { header: { "Idempotency-Key": `openapi-fetch-${world.scored.job_id}` } };
  const made = ok(await client.POST("/v1/jobs", { params, body, bodySerializer }));
  equal([made.priority, made.client_reference, made.input.size_bytes], ["stat", "openapi-fetch", scan.length]);
  return made.id;
});

async function fromSource(body: Schemas["SourceSubmission"]): Promise<Schemas["Job"]> {
  return ok(await client.POST("/v1/jobs/from-source", { body }));
}

await step("source", async () => {
  const made = await fromSource({
    source: { url: world.source_url, sha256: world.source_sha256 },
    priority: "batch",
  });
  equal(made.priority, "batch");
  await cancelled(made.id);
});

async function created(): Promise<Schemas["Upload"]> {
  const body = { size_bytes: upload.length, sha256: world.upload_sha256 };
  return ok(await client.POST("/v1/uploads", { body }));
}

async function uploadOf(upload_id: string): Promise<Schemas["Upload"]> {
  return ok(await client.GET("/v1/uploads/{upload_id}", { params: { path: { upload_id } } }));
}

const begun = await step("part", async () => {
  const made = await created();
  const params = { path: { upload_id: made.id, number: 1 }, query: signatureOf(made.parts[0]!.url!) };
  const body = new Blob([partOf(made.part_bytes, 1)]) as unknown as string;
  const answer = await client.PUT("/v1/uploads/{upload_id}/parts/{number}", {
    params,
    body,
    bodySerializer: (bytes) => bytes,
    headers: { "Content-Type": "application/octet-stream" },
  });
  equal([answer.response.status, answer.error], [204, undefined]);
  equal((await uploadOf(made.id)).parts[0]!.received, true);
  return made;
});

await step("upload", async () => {
  const made = await uploadOf((begun ?? (await created())).id);
  for (const part of made.parts) if (!part.received) await put(part.url!, partOf(made.part_bytes, part.number));
  const path = { upload_id: made.id };
  const completed = ok(await client.POST("/v1/uploads/{upload_id}/complete", { params: { path } }));
  equal(completed.sha256, world.upload_sha256);
  const accepted = await fromSource({ source: path });
  equal(accepted.input.size_bytes, upload.length);
  await cancelled(accepted.id);
});

await step("cancel", () => cancelled(jobId!));

await step("poll", async () => {
  const first = await client.GET("/v1/jobs/{job_id}", { params: { path: scored } });
  equal(ok(first).status, "succeeded");
  const header = { "If-None-Match": first.response.headers.get("etag")! };
  const again = await client.GET("/v1/jobs/{job_id}", { params: { path: scored, header } });
  equal(again.response.status, 304);
});

await step("validate", async () => {
  const params = { header: { Prefer: "wait=30" } };
  const body = { file, priority: "stat" } as const;
  const made = ok(await client.POST("/v1/validate", { params, body, bodySerializer }));
  await until(async () => (await job(made.id)).finished_at ?? undefined);
  equal((await job(made.id)).status, "succeeded");
  const path = { job_id: made.id };
  equal(ok(await client.GET("/v1/jobs/{job_id}/inspection", { params: { path } })).shape!.length, 3);
});

await step("callback", async () => {
  const params = { path: { job_id: jobId! } };
  const delivered = (times: number) => async () => {
    const found = ok(await client.GET("/v1/jobs/{job_id}/callback", { params }));
    return found.status === "delivered" && found.attempts!.length >= times ? found : undefined;
  };
  equal((await until(delivered(1))).attempts![0]!.outcome, "delivered");
  ok(await client.POST("/v1/jobs/{job_id}/callback/redeliver", { params }));
  await until(delivered(2));
});

await step("report", async () => {
  const report = ok(await client.GET("/v1/jobs/{job_id}/report", { params: { path: scored } }));
  equal(report.severity.percent_opacity, world.scored.percent_opacity);
  equal(report.lobes.map((lobe) => lobe.label), [1, 2, 3, 4, 5]);
});

const lungs = { ...scored, name: "lungs" } as const;

await step("mask", async () => {
  const answer = await client.GET("/v1/jobs/{job_id}/masks/{name}", { params: { path: lungs }, parseAs: "arrayBuffer" });
  equal(sha256(new Uint8Array(ok(answer))), world.scored.sha256);
});

await step("range", async () => {
  const params = { path: lungs, header: { Range: "bytes=2-101" } };
  const answer = await client.GET("/v1/jobs/{job_id}/masks/{name}", { params, parseAs: "blob" });
  equal([answer.response.status, ok(answer).size], [206, 100]);
  equal(answer.response.headers.get("content-range"), `bytes 2-101/${world.scored.size_bytes}`);
});

await step("list", async () => {
  const first = ok(await client.GET("/v1/jobs", { params: { query: { limit: 1, sort: "created_at" } } }));
  const query = { limit: 1, sort: "created_at", cursor: first.next_cursor! } as const;
  const second = ok(await client.GET("/v1/jobs", { params: { query } }));
  require(first.items[0]!.id < second.items[0]!.id, "the second page is not after the first");
  const chosen = await client.GET("/v1/jobs", {
    params: { query: { status: ["succeeded"], priority: "routine", limit: 200 } },
  });
  require(ok(chosen).items.some(({ id }) => id === scored.job_id), "the scored job is not in the list");
});

await step("batch", async () => {
  const items = [world.source_url, world.refused_url].map((url) => ({
    source: { url },
    client_reference: "a batch",
  }));
  const made = ok(await client.POST("/v1/batches", { body: { items } }));
  const params = { path: { batch_id: made.id } };
  ok(await client.POST("/v1/batches/{batch_id}/cancel", { params }));
  const found = ok(await client.GET("/v1/batches/{batch_id}", { params }));
  equal([found.counts.refused, found.items[1]!.error!.type], [1, "/problems/source-not-allowed"]);
  equal(found.items[0]!.job!.priority, "batch");
});

await step("problem", async () => {
  const missing = await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: "unknown" } } });
  equal([missing.error!.status, missing.error!.type], [404, "/problems/job-not-found"]);
  const { error } = await client.GET("/v1/jobs", { params: { query: { cursor: "none" } } });
  equal([error!.status, error!.errors![0]!.pointer], [422, "/query/cursor"]);
});
