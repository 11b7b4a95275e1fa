// Drives what openapi-generator's `typescript-fetch` makes.
import * as api from "../build/openapi-generator-typescript-fetch/index";
import { equal, partOf, put, require, scan, sha256, signatureOf, step, until, upload, world } from "./steps";

const configuration = new api.Configuration({ basePath: world.address });
const jobs = new api.JobsApi(configuration);
const results = new api.ResultsApi(configuration);
const uploads = new api.UploadsApi(configuration);
const batches = new api.BatchesApi(configuration);
const callbacks = new api.CallbacksApi(configuration);
const scored = world.scored.job_id;

async function cancelled(jobId: string): Promise<api.Job> {
  await jobs.cancelJob({ jobId });
  return until(async () => {
    const job = await jobs.getJob({ jobId });
    return job.status === api.JobStatus.Cancelled ? job : undefined;
  });
}

/** The problem that a call ends with. */
async function problemOf(call: Promise<unknown>): Promise<api.Problem> {
  try {
    await call;
  } catch (error) {
    if (error instanceof api.ResponseError) return api.ProblemFromJSON(await error.response.json());
    throw error;
  }
  throw new Error("it was no problem");
}

const jobId = await step("form", async () => {
  const job = await jobs.createJob({
    file: new Blob([scan]),
    priority: api.Priority.Stat,
    clientReference: "typescript-fetch",
    callbackUrl: world.callback_url,
    idempotencyKey: `typescript-fetch-${scored}`,
  });
  equal([job.priority, job.clientReference, job.input.sizeBytes], ["stat", "typescript-fetch", scan.length]);
  return job.id;
});

await step("source", async () => {
  const job = await jobs.createJobFromSource({
    sourceSubmission: {
      source: { url: world.source_url, sha256: world.source_sha256 },
      priority: api.Priority.Batch,
    },
  });
  equal(job.priority, api.Priority.Batch);
  await cancelled(job.id);
});

async function created(): Promise<api.Upload> {
  return uploads.createUpload({ uploadRequest: { sizeBytes: upload.length, sha256: world.upload_sha256 } });
}

const begun = await step("part", async () => {
  const made = await created();
  const body = new Blob([partOf(made.partBytes, 1)]);
  await uploads.putUploadPart({ uploadId: made.id, number: 1, ...signatureOf(made.parts[0]!.url!), body });
  const found = await uploads.getUpload({ uploadId: made.id });
  equal(found.parts.map((part) => part.received)[0], true);
  return found;
});

await step("upload", async () => {
  const { id: uploadId } = begun ?? (await created());
  const made = await uploads.getUpload({ uploadId });
  for (const part of made.parts) if (!part.received) await put(part.url!, partOf(made.partBytes, part.number));
  equal((await uploads.completeUpload({ uploadId })).sha256, world.upload_sha256);
  const job = await jobs.createJobFromSource({ sourceSubmission: { source: { uploadId } } });
  equal(job.input.sizeBytes, upload.length);
  await cancelled(job.id);
});

await step("cancel", async () => equal((await cancelled(jobId!)).status, "cancelled"));

await step("poll", async () => {
  const answer = await jobs.getJobRaw({ jobId: scored });
  equal((await answer.value()).status, api.JobStatus.Succeeded);
  const etag = answer.raw.headers.get("etag")!;
  try {
    await jobs.getJobRaw({ jobId: scored, ifNoneMatch: etag });
  } catch (error) {
    // What is no success is thrown by this client.
    require(error instanceof api.ResponseError && error.response.status === 304, String(error));
    return;
  }
  throw new Error("it was no 304");
});

await step("validate", async () => {
  const { id } = await jobs.validateScan({ file: new Blob([scan]), priority: api.Priority.Stat, prefer: "wait=30" });
  await until(async () => (await jobs.getJob({ jobId: id })).finishedAt ?? undefined);
  equal((await jobs.getJob({ jobId: id })).status, "succeeded");
  equal((await results.getInspection({ jobId: id })).shape!.length, 3);
});

await step("callback", async () => {
  const delivered = (times: number) => async () => {
    const found = await callbacks.getCallback({ jobId: jobId! });
    return found.status === api.CallbackStatus.Delivered && found.attempts!.length >= times ? found : undefined;
  };
  equal((await until(delivered(1))).attempts![0]!.outcome, api.CallbackOutcome.Delivered);
  await callbacks.redeliverCallback({ jobId: jobId! });
  await until(delivered(2));
});

await step("report", async () => {
  const report = await results.getReport({ jobId: scored });
  equal(report.severity.percentOpacity, world.scored.percent_opacity);
  equal(report.lobes.map((lobe) => lobe.label), [1, 2, 3, 4, 5]);
});

await step("mask", async () => {
  const mask = await results.getMask({ jobId: scored, name: api.MaskName.Lungs });
  equal(sha256(new Uint8Array(await mask.arrayBuffer())), world.scored.sha256);
});

await step("range", async () => {
  const answer = await results.getMaskRaw({ jobId: scored, name: api.MaskName.Lungs, range: "bytes=2-101" });
  equal([answer.raw.status, (await answer.value()).size], [206, 100]);
  equal(answer.raw.headers.get("content-range"), `bytes 2-101/${world.scored.size_bytes}`);
});

await step("list", async () => {
  const first = await jobs.listJobs({ limit: 1, sort: api.ListJobsSortEnum.OLDEST_FIRST });
  const second = await jobs.listJobs({ limit: 1, sort: api.ListJobsSortEnum.OLDEST_FIRST, cursor: first.nextCursor! });
  require(first.items[0]!.id < second.items[0]!.id, "the second page is not after the first");
  const chosen = await jobs.listJobs({ status: ["succeeded"], priority: "routine", limit: 200 });
  require(chosen.items.some((job) => job.id === scored), "the scored job is not in the list");
});

await step("batch", async () => {
  const items = [world.source_url, world.refused_url].map((url) => ({ source: { url }, clientReference: "a batch" }));
  const { id: batchId } = await batches.createBatch({ batchSubmission: { items } });
  await batches.cancelBatch({ batchId });
  const found = await batches.getBatch({ batchId });
  equal([found.counts.refused, found.items[1]!.error!.type], [1, "/problems/source-not-allowed"]);
  equal(found.items[0]!.job!.priority, api.Priority.Batch);
});

await step("problem", async () => {
  equal((await problemOf(jobs.getJob({ jobId: "unknown" }))).type, "/problems/job-not-found");
  const problem = await problemOf(jobs.listJobs({ cursor: "none" }));
  equal([problem.status, problem.errors![0]!.pointer], [422, "/query/cursor"]);
});
