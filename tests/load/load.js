// Clients of a gateway, as k6 plays them; load/run.py starts the gateway and calls this once for each phase.
//
// BASE     address of the gateway
// PHASE    JSON: a Phase of load/phases.py
// SCAN     file with a whole multipart body that holds one scan; BOUNDARY is its boundary
// JOBS     file with the ids of the jobs to poll, a JSON array
// SUMMARY  file for the figures, JSON
import exec from 'k6/execution';
import fs from 'k6/experimental/fs';
import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter } from 'k6/metrics';
import { SharedArray } from 'k6/data';

const JITTER = 0.2; // clients that keep time to the millisecond would all ask at once, for ever, after the first stall
const phase = JSON.parse(__ENV.PHASE);
const jobs = new SharedArray('jobs', () => JSON.parse(open(__ENV.JOBS)));
// open() would give each of 550 clients a copy; this file is read by those who send it.
const scan = phase.uploaders ? await fs.open(__ENV.SCAN) : null;
const deferred = new Counter('posts_deferred');
const answered = new Counter('polls_not_modified');

function scenarios() {
  const found = {};
  const startTime = `${phase.begin_seconds}s`;
  if (phase.uploaders) {
    const duration = `${phase.seconds + phase.ramp_seconds}s`;
    found.uploads = { executor: 'constant-vus', exec: 'upload', vus: phase.uploaders, duration, gracefulStop: '120s' };
  }
  if (phase.pollers) {
    const duration = `${phase.seconds}s`;
    found.polls = { executor: 'constant-vus', exec: 'poll', vus: phase.pollers, duration, startTime, gracefulStop: '5s' };
  }
  if (phase.rate) {
    found.rate = {
      executor: 'constant-arrival-rate', exec: 'look', rate: phase.rate, timeUnit: '1s', duration: `${phase.seconds}s`,
      preAllocatedVUs: 100, maxVUs: 100, startTime, gracefulStop: '5s',
    };
  }
  return found;
}

function thresholds() {
  const found = {};
  if (phase.uploaders) {
    found['http_req_duration{kind:post}'] = ['max>0']; // asks for the figures; how long a post takes is the disk's affair
    found['checks{kind:post}'] = ['rate>0.99'];
  }
  if (phase.pollers || phase.rate) {
    found['http_req_duration{kind:poll}'] = [`p(99)<${phase.p99_ms}`];
    found['checks{kind:poll}'] = ['rate>0.999'];
  }
  return found;
}

export const options = {
  scenarios: scenarios(),
  thresholds: thresholds(),
  discardResponseBodies: true,
  summaryTrendStats: ['count', 'min', 'avg', 'med', 'p(95)', 'p(99)', 'max'],
};

let body = null;
let sent = 0;

export async function upload() {
  if (sent >= phase.uploads_each) {
    sleep(1); // the disk has an end
    return;
  }
  if (body === null) {
    body = new Uint8Array((await scan.stat()).size);
    await scan.read(body);
    sleep(Math.random() * phase.ramp_seconds);
  }
  const headers = { 'Content-Type': `multipart/form-data; boundary=${__ENV.BOUNDARY}` };
  const answer = http.post(`${__ENV.BASE}/v1/jobs`, body.buffer, { headers, tags: { kind: 'post' }, timeout: '120s' });
  if (answer.status === 503 && answer.headers['Retry-After']) {
    deferred.add(1);
    sleep(Number(answer.headers['Retry-After']));
    return;
  }
  sent += 1;
  check(answer, { accepted: (a) => a.status === 202 }, { kind: 'post' });
}

let etag = null;

function ask(job, isConditional) {
  const headers = isConditional && etag ? { 'If-None-Match': etag } : {};
  const params = { headers, tags: { kind: 'poll', name: 'GET /v1/jobs/{job_id}' }, timeout: '30s' };
  const answer = http.get(`${__ENV.BASE}/v1/jobs/${job}`, params);
  etag = answer.headers.Etag;
  answered.add(answer.status === 304 ? 1 : 0);
  check(answer, { told: (a) => a.status === 200 || a.status === 304 }, { kind: 'poll' });
  return answer;
}

// Every second client says which state it has.
export function poll() {
  const paced = phase.pace === 'retry-after';
  if (exec.vu.iterationInScenario === 0) {
    sleep(Math.random() * (paced ? 2 : phase.pace));
  }
  const began = Date.now();
  const answer = ask(jobs[exec.vu.idInTest % jobs.length], exec.vu.idInTest % 2 === 0);
  const wanted = paced ? Number(answer.headers['Retry-After'] || 1) : phase.pace;
  const pause = wanted * (1 + JITTER * (2 * Math.random() - 1));
  sleep(paced ? pause : Math.max(pause - (Date.now() - began) / 1000, 0));
}

export function look() {
  ask(jobs[exec.vu.idInTest % jobs.length], false);
}

export function handleSummary(data) {
  return { [__ENV.SUMMARY]: JSON.stringify(data) };
}
