// Drives what ng-openapi-gen makes, with Angular's HttpClient outside of a browser.
import "@angular/compiler"; // Angular's packages are linked by it at run time, since no bundler of Angular did
import { HttpClient, HttpErrorResponse, provideHttpClient, withFetch } from "@angular/common/http";
import {
  createEnvironmentInjector,
  type EnvironmentInjector,
  Injector,
  provideZonelessChangeDetection,
  ɵINJECTOR_SCOPE,
} from "@angular/core";
import { Api } from "../build/ng-openapi-gen/generated/api";
import { ApiConfiguration } from "../build/ng-openapi-gen/generated/api-configuration";
import * as fn from "../build/ng-openapi-gen/generated/functions";
import type { Job, Problem, Upload } from "../build/ng-openapi-gen/generated/models";
import { equal, partOf, put, require, scan, sha256, signatureOf, step, until, upload, world } from "./steps";

// An application would make the root of all injectors, and needs a page.
const injector = createEnvironmentInjector(
  [
    { provide: ɵINJECTOR_SCOPE, useValue: "root" },
    provideZonelessChangeDetection(),
    provideHttpClient(withFetch()),
  ],
  Injector.NULL as EnvironmentInjector,
);
const configuration = new ApiConfiguration();
configuration.rootUrl = world.address;
const api = new Api(configuration, injector.get(HttpClient));
const scored = { job_id: world.scored.job_id };

/** What a call ends with that is no success: Angular raises it. */
async function failed(call: Promise<unknown>): Promise<HttpErrorResponse> {
  try {
    await call;
  } catch (error) {
    if (error instanceof HttpErrorResponse) return error;
    throw error;
  }
  throw new Error("it succeeded");
}

async function job(job_id: string): Promise<Job> {
  return api.invoke(fn.getJob, { job_id });
}

async function cancelled(job_id: string): Promise<void> {
  await api.invoke(fn.cancelJob, { job_id });
  await until(async () => ((await job(job_id)).status === "cancelled" ? true : undefined));
}

const jobId = await step("form", async () => {
  const made = await api.invoke(fn.createJob, {
    body: {
      file: new Blob([scan]),
      priority: "stat",
      client_reference: "ng-openapi-gen",
      callback_url: world.callback_url,
    },
    "Idempotency-Key": `ng-openapi-gen-${world.scored.job_id}`,
  });
  equal([made.priority, made.client_reference, made.input.size_bytes], ["stat", "ng-openapi-gen", scan.length]);
  return made.id;
});

await step("source", async () => {
  const source = { url: world.source_url, sha256: world.source_sha256 };
  const made = await api.invoke(fn.createJobFromSource, { body: { source, priority: "batch" } });
  equal(made.priority, "batch");
  await cancelled(made.id);
});

async function created(): Promise<Upload> {
  return api.invoke(fn.createUpload, { body: { size_bytes: upload.length, sha256: world.upload_sha256 } });
}

const begun = await step("part", async () => {
  const made = await created();
  const body = new Blob([partOf(made.part_bytes, 1)]);
  const signature = signatureOf(made.parts[0]!.url!);
  await api.invoke(fn.putUploadPart, { upload_id: made.id, number: 1, ...signature, body });
  equal((await api.invoke(fn.getUpload, { upload_id: made.id })).parts[0]!.received, true);
  return made;
});

await step("upload", async () => {
  const path = { upload_id: (begun ?? (await created())).id };
  const made = await api.invoke(fn.getUpload, path);
  for (const part of made.parts) if (!part.received) await put(part.url!, partOf(made.part_bytes, part.number));
  equal((await api.invoke(fn.completeUpload, path)).sha256, world.upload_sha256);
  const accepted = await api.invoke(fn.createJobFromSource, { body: { source: path } });
  equal(accepted.input.size_bytes, upload.length);
  await cancelled(accepted.id);
});

await step("cancel", () => cancelled(jobId!));

await step("poll", async () => {
  const first = await api.invoke$Response(fn.getJob, scored);
  equal(first.body.status, "succeeded");
  const again = await failed(api.invoke(fn.getJob, { ...scored, "If-None-Match": first.headers.get("etag")! }));
  equal(again.status, 304);
});

await step("validate", async () => {
  const body = { file: new Blob([scan]), priority: "stat" } as const;
  const { id: job_id } = await api.invoke(fn.validateScan, { body, Prefer: "wait=30" });
  await until(async () => (await job(job_id)).finished_at ?? undefined);
  equal((await api.invoke(fn.getInspection, { job_id })).shape!.length, 3);
});

await step("callback", async () => {
  const path = { job_id: jobId! };
  const delivered = (times: number) => async () => {
    const found = await api.invoke(fn.getCallback, path);
    return found.status === "delivered" && found.attempts!.length >= times ? found : undefined;
  };
  equal((await until(delivered(1))).attempts![0]!.outcome, "delivered");
  await api.invoke(fn.redeliverCallback, path);
  await until(delivered(2));
});

await step("report", async () => {
  const report = await api.invoke(fn.getReport, scored);
  equal(report.severity.percent_opacity, world.scored.percent_opacity);
  equal(report.lobes.map((lobe) => lobe.label), [1, 2, 3, 4, 5]);
});

await step("mask", async () => {
  const mask = await api.invoke(fn.getMask, { ...scored, name: "lungs" });
  equal(sha256(new Uint8Array(await mask.arrayBuffer())), world.scored.sha256);
});

await step("range", async () => {
  const answer = await api.invoke$Response(fn.getMask, { ...scored, name: "lungs", Range: "bytes=2-101" });
  equal([answer.status, answer.body.size], [206, 100]);
  equal(answer.headers.get("content-range"), `bytes 2-101/${world.scored.size_bytes}`);
});

await step("list", async () => {
  const first = await api.invoke(fn.listJobs, { limit: 1, sort: "created_at" });
  const second = await api.invoke(fn.listJobs, { limit: 1, sort: "created_at", cursor: first.next_cursor! });
  require(first.items[0]!.id < second.items[0]!.id, "the second page is not after the first");
  const chosen = await api.invoke(fn.listJobs, { status: ["succeeded"], priority: "routine", limit: 200 });
  require(chosen.items.some(({ id }) => id === scored.job_id), "the scored job is not in the list");
});

await step("batch", async () => {
  const items = [world.source_url, world.refused_url].map((url) => ({ source: { url }, client_reference: "a batch" }));
  const { id: batch_id } = await api.invoke(fn.createBatch, { body: { items } });
  await api.invoke(fn.cancelBatch, { batch_id });
  const found = await api.invoke(fn.getBatch, { batch_id });
  equal([found.counts.refused, found.items[1]!.error!.type], [1, "/problems/source-not-allowed"]);
  equal(found.items[0]!.job!.priority, "batch");
});

await step("problem", async () => {
  const missing: Problem = (await failed(job("unknown"))).error;
  equal([missing.status, missing.type], [404, "/problems/job-not-found"]);
  const problem: Problem = (await failed(api.invoke(fn.listJobs, { cursor: "none" }))).error;
  equal([problem.status, problem.errors![0]!.pointer], [422, "/query/cursor"]);
});
