// Drives what orval makes for fetch.
import * as api from "../build/orval/api";
import { equal, partOf, put, require, scan, sha256, signatureOf, step, until, upload, world } from "./steps";

process.env["LOBEWISE_ADDRESS"] = world.address;
const scored = world.scored.job_id;

/** What came with a status of success; the type of `data` is known by the status. */
function ok<A extends { status: number }, S extends A["status"]>(answer: A, ...statuses: S[]): Extract<A, { status: S }> {
  if (!(statuses as number[]).includes(answer.status)) throw new Error(JSON.stringify(answer));
  return answer as Extract<A, { status: S }>;
}

async function job(id: string): Promise<api.Job> {
  return ok(await api.getJob(id), 200).data;
}

async function cancelled(id: string): Promise<void> {
  ok(await api.cancelJob(id), 202);
  await until(async () => ((await job(id)).status === api.JobStatus.cancelled ? true : undefined));
}

const jobId = await step("form", async () => {
  const submission = {
    file: new Blob([scan]),
    priority: api.Priority.stat,
    client_reference: "orval",
    callback_url: world.callback_url,
  };
  const { data } = ok(await api.createJob(submission, { "Idempotency-Key": `orval-${scored}` }), 200, 202);
  equal([data.priority, data.client_reference, data.input.size_bytes], ["stat", "orval", scan.length]);
  return data.id;
});

await step("source", async () => {
  const source = { url: world.source_url, sha256: world.source_sha256 };
  const { data } = ok(await api.createJobFromSource({ source, priority: api.Priority.batch }), 200, 202);
  equal(data.priority, "batch");
  await cancelled(data.id);
});

async function created(): Promise<api.Upload> {
  return ok(await api.createUpload({ size_bytes: upload.length, sha256: world.upload_sha256 }), 201).data;
}

const begun = await step("part", async () => {
  const made = await created();
  const bytes = new Blob([partOf(made.part_bytes, 1)]);
  ok(await api.putUploadPart(made.id, 1, bytes, signatureOf(made.parts[0]!.url!)), 204);
  equal(ok(await api.getUpload(made.id), 200).data.parts[0]!.received, true);
  return made;
});

await step("upload", async () => {
  const { data: made } = ok(await api.getUpload((begun ?? (await created())).id), 200);
  for (const part of made.parts) if (!part.received) await put(part.url!, partOf(made.part_bytes, part.number));
  equal(ok(await api.completeUpload(made.id), 200).data.sha256, world.upload_sha256);
  const { data } = ok(await api.createJobFromSource({ source: { upload_id: made.id } }), 200, 202);
  equal(data.input.size_bytes, upload.length);
  await cancelled(data.id);
});

await step("cancel", () => cancelled(jobId!));

await step("poll", async () => {
  const first = ok(await api.getJob(scored), 200);
  equal(first.data.status, "succeeded");
  equal((await api.getJob(scored, { "If-None-Match": first.headers.get("etag")! })).status, 304);
});

await step("validate", async () => {
  const submission = { file: new Blob([scan]), priority: api.Priority.stat };
  const { data } = ok(await api.validateScan(submission, { Prefer: "wait=30" }), 200, 202);
  await until(async () => (await job(data.id)).finished_at ?? undefined);
  equal(ok(await api.getInspection(data.id), 200).data.shape!.length, 3);
});

await step("callback", async () => {
  const delivered = (times: number) => async () => {
    const { data } = ok(await api.getCallback(jobId!), 200);
    return data.status === api.CallbackStatus.delivered && data.attempts!.length >= times ? data : undefined;
  };
  equal((await until(delivered(1))).attempts![0]!.outcome, api.CallbackOutcome.delivered);
  ok(await api.redeliverCallback(jobId!), 202);
  await until(delivered(2));
});

await step("report", async () => {
  const { data } = ok(await api.getReport(scored), 200);
  equal(data.severity.percent_opacity, world.scored.percent_opacity);
  equal(data.lobes.map((lobe) => lobe.label), [1, 2, 3, 4, 5]);
});

await step("mask", async () => {
  const { data } = ok(await api.getMask(scored, api.MaskName.lungs), 200);
  equal(sha256(new Uint8Array(await data.arrayBuffer())), world.scored.sha256);
});

await step("range", async () => {
  const answer = ok(await api.getMask(scored, api.MaskName.lungs, { Range: "bytes=2-101" }), 206);
  equal([answer.data.size, answer.headers.get("content-range")], [100, `bytes 2-101/${world.scored.size_bytes}`]);
});

await step("list", async () => {
  const sort = api.ListJobsSort.OLDEST_FIRST;
  const { data: first } = ok(await api.listJobs({ limit: 1, sort }), 200);
  const { data: second } = ok(await api.listJobs({ limit: 1, sort, cursor: first.next_cursor! }), 200);
  require(first.items[0]!.id < second.items[0]!.id, "the second page is not after the first");
  const { data } = ok(await api.listJobs({ status: ["succeeded"], priority: "routine", limit: 200 }), 200);
  require(data.items.some(({ id }) => id === scored), "the scored job is not in the list");
});

await step("batch", async () => {
  const items = [world.source_url, world.refused_url].map((url) => ({ source: { url }, client_reference: "a batch" }));
  const { id } = ok(await api.createBatch({ items }), 202).data;
  ok(await api.cancelBatch(id), 202);
  const { data } = ok(await api.getBatch(id), 200);
  equal([data.counts.refused, data.items[1]!.error!.type], [1, "/problems/source-not-allowed"]);
  equal(data.items[0]!.job!.priority, api.Priority.batch);
});

await step("problem", async () => {
  equal(ok(await api.getJob("unknown"), 404).data.type, "/problems/job-not-found");
  const { data } = ok(await api.listJobs({ cursor: "none" }), 422);
  equal([data.status, data.errors![0]!.pointer], [422, "/query/cursor"]);
});
