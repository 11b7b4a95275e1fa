/** The gateway as the pages know it. */

export type Status = "queued" | "running" | "succeeded" | "failed" | "cancelled";
export type Range = { low: number; high: number };
export type Severity = {
  percent_opacity: number;
  percent_opacity_range: Range | null;
  percent_high_opacity: number;
  lung_severity_score: number;
  lung_high_opacity_score: number;
};
export type Job = {
  id: string;
  status: Status;
  task: "score" | "validate";
  created_at: string;
  client_reference: string | null;
  priority: string;
  stage: string | null;
  progress: number;
  queue_position: number | null;
  cancel_requested: boolean;
  error: { title: string; detail: string } | null;
  severity: Severity | null;
};
export type LobeScores = {
  lobe: "left_upper" | "left_lower" | "right_upper" | "right_middle" | "right_lower";
  label: number;
  volume_ml: number;
  percent_opacity: number;
  percent_opacity_range: Range | null;
  percent_high_opacity: number;
  severity_score: number;
  high_opacity_score: number;
};
export type Report = {
  severity: Severity;
  lungs: { volume_ml: number; opacity_ml: number; high_opacity_ml: number };
  lobes: LobeScores[];
  quality: { code: string; severity: "info" | "warning" | "error"; message: string; lobe: LobeScores["lobe"] | null }[];
  provenance: {
    input_sha256: string;
    software: string;
    device: string;
    models: { name: string; version: string; sha256: string }[];
    seconds: Record<string, number>;
    reused_from: string | null;
  };
};
export type Labels = { masks: Record<string, { number: number; name: string; colour: string }[]> };
export type Session = { needs_key: boolean; is_known: boolean; tenant: string | null; roles: string[] };

/** What a call was answered that came to nothing; `status` is 0 where nobody answered. */
export class CallError extends Error {
  constructor(
    readonly status: number,
    detail: string,
    readonly type: string = "",
  ) {
    super(detail);
  }
}

/** Where something of the gateway is; the page's <base> has the prefix that a proxy adds. */
export function address(path: string): string {
  return new URL(path, document.baseURI).href;
}

export async function call(path: string, options: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(address(path), { credentials: "same-origin", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new CallError(0, String(error));
  }
  if (answer.ok) return answer;
  const problem = (await answer.json().catch(() => ({}))) as { title?: string; detail?: string; type?: string };
  throw new CallError(answer.status, problem.detail ?? problem.title ?? String(answer.status), problem.type);
}

export async function get<T>(path: string, options: RequestInit = {}): Promise<T> {
  return (await (await call(path, options)).json()) as T;
}

export const session = (): Promise<Session> => get<Session>("session");

export async function signIn(key: string): Promise<void> {
  const headers = { "Content-Type": "application/json" };
  await call("session", { method: "POST", headers, body: JSON.stringify({ key }) });
}

export async function signOut(): Promise<void> {
  await call("session", { method: "DELETE" });
  location.assign(address("."));
}

/** Send a scan; `onProgress` gets the share that has gone. */
export function submit(
  file: Blob,
  name: string,
  fields: Record<string, string>,
  onProgress: (share: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const form = new FormData();
  for (const [field, value] of Object.entries(fields)) if (value) form.append(field, value);
  // The file's own name may be a patient's; the gateway reads none.
  form.append("file", file, name);
  return new Promise((resolve, reject) => {
    // `fetch` does not say how much of a body has gone.
    const request = new XMLHttpRequest();
    request.open("POST", address("v1/jobs"));
    request.responseType = "json";
    request.upload.onprogress = (event) => onProgress(event.lengthComputable ? event.loaded / event.total : 0);
    request.onerror = () => reject(new CallError(0, ""));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    request.onload = () => {
      if (request.status < 300) resolve();
      else reject(new CallError(request.status, request.response?.detail ?? request.response?.title ?? ""));
    };
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
