// Drives what hey-api's openapi-ts makes, with its client of fetch.
import * as api from "../build/hey-api/generated/index";
import { client } from "../build/hey-api/generated/client.gen";
import { equal, partOf, put, require, scan, sha256, signatureOf, step, until, upload, world } from "./steps";

client.setConfig({ baseUrl: world.address });
const throwOnError = true;
const scored = { job_id: world.scored.job_id };

async function cancelled(job_id: string): Promise<void> {
  await api.cancelJob({ path: { job_id }, throwOnError });
  await until(async () => {
    const { data } = await api.getJob({ path: { job_id }, throwOnError });
    return data.status === "cancelled" ? true : undefined;
  });
}

const jobId = await step("form", async () => {
  const { data } = await api.createJob({
    body: {
      file: new Blob([scan]),
      priority: "stat",
      client_reference: "hey-api",
      callback_url: world.callback_url,
    },
    headers: { "Idempotency-Key": `hey-api-${world.scored.job_id}` },
    throwOnError,
  });
  equal([data.priority, data.client_reference, data.input.size_bytes], ["stat", "hey-api", scan.length]);
  return data.id;
});

await step("source", async () => {
  const source = { url: world.source_url, sha256: world.source_sha256 };
  const { data } = await api.createJobFromSource({ body: { source, priority: "batch" }, throwOnError });
  equal(data.priority, "batch");
  await cancelled(data.id);
});

async function created(): Promise<api.Upload> {
  const body = { size_bytes: upload.length, sha256: world.upload_sha256 };
  return (await api.createUpload({ body, throwOnError })).data;
}

const begun = await step("part", async () => {
  const made = await created();
  const path = { upload_id: made.id, number: 1 };
  const query = signatureOf(made.parts[0]!.url!);
  await api.putUploadPart({ path, query, body: new Blob([partOf(made.part_bytes, 1)]), throwOnError });
  const found = await api.getUpload({ path, throwOnError });
  equal(found.data.parts[0]!.received, true);
  return made;
});

await step("upload", async () => {
  const path = { upload_id: (begun ?? (await created())).id };
  const { data: made } = await api.getUpload({ path, throwOnError });
  for (const part of made.parts) if (!part.received) await put(part.url!, partOf(made.part_bytes, part.number));
  equal((await api.completeUpload({ path, throwOnError })).data.sha256, world.upload_sha256);
  const { data } = await api.createJobFromSource({ body: { source: path }, throwOnError });
  equal(data.input.size_bytes, upload.length);
  await cancelled(data.id);
});

await step("cancel", () => cancelled(jobId!));

await step("poll", async () => {
  const { data, response } = await api.getJob({ path: scored, throwOnError });
  equal(data.status, "succeeded");
  const headers = { "If-None-Match": response.headers.get("etag")! };
  const again = await api.getJob({ path: scored, headers });
  equal(again.response?.status, 304);
});

await step("validate", async () => {
  const body = { file: new Blob([scan]), priority: "stat" } as const;
  const { data: job } = await api.validateScan({ body, headers: { Prefer: "wait=30" }, throwOnError });
  const path = { job_id: job.id };
  await until(async () => (await api.getJob({ path, throwOnError })).data.finished_at ?? undefined);
  equal((await api.getJob({ path, throwOnError })).data.status, "succeeded");
  equal((await api.getInspection({ path, throwOnError })).data.shape!.length, 3);
});

await step("callback", async () => {
  const path = { job_id: jobId! };
  const delivered = (times: number) => async () => {
    const { data } = await api.getCallback({ path, throwOnError });
    return data.status === "delivered" && data.attempts!.length >= times ? data : undefined;
  };
  equal((await until(delivered(1))).attempts![0]!.outcome, "delivered");
  await api.redeliverCallback({ path, throwOnError });
  await until(delivered(2));
});

await step("report", async () => {
  const { data } = await api.getReport({ path: scored, throwOnError });
  equal(data.severity.percent_opacity, world.scored.percent_opacity);
  equal(data.lobes.map((lobe) => lobe.label), [1, 2, 3, 4, 5]);
});

await step("mask", async () => {
  const { data } = await api.getMask({ path: { ...scored, name: "lungs" }, throwOnError });
  equal(sha256(new Uint8Array(await data.arrayBuffer())), world.scored.sha256);
});

await step("range", async () => {
  const headers = { Range: "bytes=2-101" };
  const { data, response } = await api.getMask({ path: { ...scored, name: "lungs" }, headers, throwOnError });
  equal([response.status, data.size], [206, 100]);
  equal(response.headers.get("content-range"), `bytes 2-101/${world.scored.size_bytes}`);
});

await step("list", async () => {
  const first = await api.listJobs({ query: { limit: 1, sort: "created_at" }, throwOnError });
  const cursor = first.data.next_cursor!;
  const second = await api.listJobs({ query: { limit: 1, sort: "created_at", cursor }, throwOnError });
  require(first.data.items[0]!.id < second.data.items[0]!.id, "the second page is not after the first");
  const { data } = await api.listJobs({
    query: { status: ["succeeded"], priority: "routine", limit: 200 },
    throwOnError,
  });
  require(data.items.some((job) => job.id === world.scored.job_id), "the scored job is not in the list");
});

await step("batch", async () => {
  const items = [world.source_url, world.refused_url].map((url) => ({ source: { url }, client_reference: "a batch" }));
  const { data: made } = await api.createBatch({ body: { items }, throwOnError });
  const path = { batch_id: made.id };
  await api.cancelBatch({ path, throwOnError });
  const { data } = await api.getBatch({ path, throwOnError });
  equal([data.counts.refused, data.items[1]!.error!.type], [1, "/problems/source-not-allowed"]);
  equal(data.items[0]!.job!.priority, "batch");
});

await step("problem", async () => {
  const missing = await api.getJob({ path: { job_id: "unknown" } });
  equal([missing.error!.status, missing.error!.type], [404, "/problems/job-not-found"]);
  const { error } = await api.listJobs({ query: { cursor: "none" } });
  equal([error!.status, error!.errors![0]!.pointer], [422, "/query/cursor"]);
});
