// Drives the classes that openapi-generator's `java` makes for the JDK's own HTTP client.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import lobewise.ApiClient;
import lobewise.ApiException;
import lobewise.api.BatchesApi;
import lobewise.api.CallbacksApi;
import lobewise.api.JobsApi;
import lobewise.api.ResultsApi;
import lobewise.api.UploadsApi;
import lobewise.model.*;

public class Drive {
  static final int WAIT_SECONDS = 60;
  static final ObjectMapper JSON = ApiClient.createDefaultObjectMapper();
  static JsonNode world;
  static String scored;
  static JobsApi jobs;
  static ResultsApi results;
  static UploadsApi uploads;
  static BatchesApi batches;
  static CallbacksApi callbacks;
  static String jobId;
  static String uploadId;

  interface Step {
    void run() throws Exception;
  }

  interface Question {
    boolean isSo() throws Exception;
  }

  /** Prints how it went. What went wrong is no reason to leave out the others. */
  static void step(String operation, Step run) throws Exception {
    String fault = "";
    try {
      run.run();
    } catch (Exception | AssertionError error) {
      fault = error.toString();
    }
    Map<String, Object> line = new LinkedHashMap<>();
    line.put("operation", operation);
    line.put("ok", fault.isEmpty());
    line.put("detail", fault.substring(0, Math.min(300, fault.length())));
    System.out.println(JSON.writeValueAsString(line));
  }

  static void equal(Object found, Object expected) {
    if (!Objects.equals(found, expected)) throw new AssertionError(found + " is not " + expected);
  }

  static void until(Question question) throws Exception {
    long deadline = System.nanoTime() + WAIT_SECONDS * 1_000_000_000L;
    while (!question.isSo()) {
      if (System.nanoTime() > deadline) throw new AssertionError("it took too long");
      Thread.sleep(300);
    }
  }

  static String told(String name) {
    return world.get(name).asText();
  }

  /** Parameters are named by a request, since their order in a call changes with each new one. */
  static JobsApi.APIListJobsRequest.Builder oldest() {
    return JobsApi.APIListJobsRequest.newBuilder().limit(1).sort("created_at");
  }

  static Job job(String id) throws ApiException {
    return jobs.getJob(id, null);
  }

  static void cancelled(String id) throws Exception {
    jobs.cancelJob(id);
    until(() -> job(id).getStatus() == JobStatus.CANCELLED);
  }

  static Upload created() throws Exception {
    long size = Files.size(Path.of(told("upload")));
    return uploads.createUpload(new UploadRequest().sizeBytes(size).sha256(told("upload_sha256")));
  }

  /** Part `number`, counted from 1, of the file to upload. */
  static byte[] partOf(Upload made, int number) throws Exception {
    byte[] whole = Files.readAllBytes(Path.of(told("upload")));
    int size = Math.toIntExact(made.getPartBytes());
    return Arrays.copyOfRange(whole, (number - 1) * size, Math.min(number * size, whole.length));
  }

  /** A part goes to its address, which on S3 is none of the service's: no generated client is asked. */
  static void put(URI address, byte[] part) throws Exception {
    HttpRequest request = HttpRequest.newBuilder(address).PUT(HttpRequest.BodyPublishers.ofByteArray(part)).build();
    int status = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.discarding()).statusCode();
    equal(status / 100, 2);
  }

  static Problem problemOf(Step call) throws Exception {
    try {
      call.run();
    } catch (ApiException error) { // this client gives the text of a problem, and its class apart
      return JSON.readValue(error.getResponseBody(), Problem.class);
    }
    throw new AssertionError("it was no problem");
  }

  public static void main(String[] arguments) throws Exception {
    world = JSON.readTree(new File(arguments[0]));
    scored = world.get("scored").get("job_id").asText();
    ApiClient client = new ApiClient();
    client.updateBaseUri(told("address"));
    jobs = new JobsApi(client);
    results = new ResultsApi(client);
    uploads = new UploadsApi(client);
    batches = new BatchesApi(client);
    callbacks = new CallbacksApi(client);
    File scan = new File(told("scan"));

    step("form", () -> {
      Job made = jobs.createJob(JobsApi.APICreateJobRequest.newBuilder()
          ._file(scan).priority(Priority.STAT).clientReference("java").callbackUrl(told("callback_url"))
          .idempotencyKey("java-" + scored).build());
      equal(List.of(made.getPriority(), made.getClientReference()), List.of(Priority.STAT, "java"));
      equal(made.getInput().getSizeBytes(), scan.length());
      jobId = made.getId();
    });
    step("source", () -> {
      Source source = new Source().url(told("source_url")).sha256(told("source_sha256"));
      Job made = jobs.createJobFromSource(new SourceSubmission().source(source).priority(Priority.BATCH), null, null);
      equal(made.getPriority(), Priority.BATCH);
      cancelled(made.getId());
    });
    step("part", () -> {
      Upload made = created();
      Map<String, String> query = Stream.of(URI.create(made.getParts().get(0).getUrl().toString()).getQuery().split("&"))
          .map(pair -> pair.split("=", 2)).collect(Collectors.toMap(pair -> pair[0], pair -> pair[1]));
      Path part = Files.write(Path.of("part"), partOf(made, 1));
      uploads.putUploadPart(
          made.getId(), 1, Long.parseLong(query.get("expires")), query.get("signature"), part.toFile(),
          query.get("tenant"));
      equal(uploads.getUpload(made.getId()).getParts().get(0).getReceived(), true);
      uploadId = made.getId();
    });
    step("upload", () -> {
      if (uploadId == null) uploadId = created().getId();
      Upload made = uploads.getUpload(uploadId);
      for (UploadPart part : made.getParts())
        if (!part.getReceived()) put(URI.create(part.getUrl().toString()), partOf(made, part.getNumber()));
      equal(uploads.completeUpload(uploadId).getSha256(), told("upload_sha256"));
      SourceSubmission submission = new SourceSubmission().source(new Source().uploadId(uploadId));
      Job accepted = jobs.createJobFromSource(submission, null, null);
      equal(accepted.getInput().getSizeBytes(), Files.size(Path.of(told("upload"))));
      cancelled(accepted.getId());
    });
    step("cancel", () -> cancelled(jobId));
    step("poll", () -> {
      var first = jobs.getJobWithHttpInfo(scored, null);
      equal(first.getData().getStatus(), JobStatus.SUCCEEDED);
      try {
        jobs.getJob(scored, first.getHeaders().get("etag").get(0));
      } catch (ApiException error) { // what is no success is thrown by this client
        equal(error.getCode(), 304);
        return;
      }
      throw new AssertionError("it was no 304");
    });
    step("validate", () -> {
      Job made = jobs.validateScan(JobsApi.APIValidateScanRequest.newBuilder()
          ._file(scan).priority(Priority.STAT).prefer("wait=30").build());
      until(() -> job(made.getId()).getFinishedAt() != null);
      equal(results.getInspection(made.getId()).getShape().size(), 3);
    });
    step("callback", () -> {
      until(() -> delivered(1));
      callbacks.redeliverCallback(jobId);
      until(() -> delivered(2));
    });
    step("report", () -> {
      Report report = results.getReport(scored, null);
      double expected = world.get("scored").get("percent_opacity").asDouble();
      equal(report.getSeverity().getPercentOpacity().floatValue(), (float) expected);
      equal(report.getLobes().stream().map(LobeScores::getLabel).toList(), List.of(1, 2, 3, 4, 5));
    });
    step("mask", () -> {
      File mask = results.getMask(scored, MaskName.LUNGS, null, null, null);
      byte[] digest = MessageDigest.getInstance("SHA-256").digest(Files.readAllBytes(mask.toPath()));
      equal(HexFormat.of().formatHex(digest), world.get("scored").get("sha256").asText());
    });
    step("range", () -> {
      var answer = results.getMaskWithHttpInfo(scored, MaskName.LUNGS, null, "bytes=2-101", null);
      equal(List.of(answer.getStatusCode(), answer.getData().length()), List.of(206, 100L));
      String expected = "bytes 2-101/" + world.get("scored").get("size_bytes").asLong();
      equal(answer.getHeaders().get("content-range"), List.of(expected));
    });
    step("list", () -> {
      JobList first = jobs.listJobs(oldest().build());
      JobList second = jobs.listJobs(oldest().cursor(first.getNextCursor()).build());
      equal(first.getItems().get(0).getId().compareTo(second.getItems().get(0).getId()) < 0, true);
      JobList chosen = jobs.listJobs(JobsApi.APIListJobsRequest.newBuilder()
          .status(List.of(JobStatus.SUCCEEDED)).priority(Priority.ROUTINE).limit(200).build());
      equal(chosen.getItems().stream().anyMatch(found -> found.getId().equals(scored)), true);
    });
    step("batch", () -> {
      List<BatchItemSubmission> items = Stream.of("source_url", "refused_url")
          .map(name -> new BatchItemSubmission().source(new Source().url(told(name))).clientReference("a batch"))
          .toList();
      Batch made = batches.createBatch(new BatchSubmission().items(items), null);
      batches.cancelBatch(made.getId());
      Batch found = batches.getBatch(made.getId(), null, null);
      equal(found.getCounts().getRefused(), 1);
      equal(found.getItems().get(1).getError().getType().toString(), "/problems/source-not-allowed");
      equal(found.getItems().get(0).getJob().getPriority(), Priority.BATCH);
    });
    step("problem", () -> {
      equal(problemOf(() -> job("unknown")).getType().toString(), "/problems/job-not-found");
      Problem problem = problemOf(() -> jobs.listJobs(oldest().cursor("none").build()));
      equal(problem.getStatus(), 422);
      equal(problem.getErrors().get(0).getPointer(), "/query/cursor");
    });
  }

  static boolean delivered(int times) throws Exception {
    Callback found = callbacks.getCallback(jobId);
    return found.getStatus() == CallbackStatus.DELIVERED
        && found.getAttempts().size() >= times
        && found.getAttempts().get(0).getOutcome() == CallbackOutcome.DELIVERED;
  }
}
