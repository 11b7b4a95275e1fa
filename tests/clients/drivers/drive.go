// Drives the package that openapi-generator's `go` makes; put into a folder of its module.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	lobewise "lobewise"
)

type World struct {
	Address      string `json:"address"`
	Scan         string `json:"scan"`
	Upload       string `json:"upload"`
	UploadSha256 string `json:"upload_sha256"`
	SourceUrl    string `json:"source_url"`
	SourceSha256 string `json:"source_sha256"`
	RefusedUrl   string `json:"refused_url"`
	CallbackUrl  string `json:"callback_url"`
	Scored       struct {
		JobId          string  `json:"job_id"`
		PercentOpacity float32 `json:"percent_opacity"`
		Sha256         string  `json:"sha256"`
		SizeBytes      int     `json:"size_bytes"`
	} `json:"scored"`
}

const waitFor = 60 * time.Second

var (
	world World
	api   *lobewise.APIClient
	ctx   = context.Background()
)

// must ends the step; step prints why.
func must(err error) {
	if err != nil {
		var answered *lobewise.GenericOpenAPIError
		if errors.As(err, &answered) {
			panic(fmt.Sprintf("%s: %.200s", answered.Error(), answered.Body()))
		}
		panic(err.Error())
	}
}

func require(fact bool, words string, values ...any) {
	if !fact {
		panic(fmt.Sprintf(words, values...))
	}
}

// step prints how it went. What went wrong is no reason to leave out the others.
func step(operation string, run func()) {
	line := map[string]any{"operation": operation, "ok": true, "detail": ""}
	func() {
		defer func() {
			if fault := recover(); fault != nil {
				line["ok"], line["detail"] = false, fmt.Sprintf("%.300v", fault)
			}
		}()
		run()
	}()
	text, _ := json.Marshal(map[string]any{"ok": line["ok"], "detail": line["detail"]})
	fmt.Printf("{\"operation\": %q, %s\n", operation, text[1:])
}

func until(isSo func() bool) {
	for deadline := time.Now().Add(waitFor); !isSo(); time.Sleep(300 * time.Millisecond) {
		require(time.Now().Before(deadline), "it took too long")
	}
}

func open(path string) *os.File {
	file, err := os.Open(path)
	must(err)
	return file
}

func job(id string) *lobewise.Job {
	found, _, err := api.JobsAPI.GetJob(ctx, id).Execute()
	must(err)
	return found
}

func cancelled(id string) {
	_, _, err := api.JobsAPI.CancelJob(ctx, id).Execute()
	must(err)
	until(func() bool { return job(id).Status == lobewise.JOBSTATUS_CANCELLED })
}

func fromSource(source *lobewise.Source, priority lobewise.Priority) *lobewise.Job {
	submission := lobewise.NewSourceSubmission(*source)
	submission.SetPriority(priority)
	made, _, err := api.JobsAPI.CreateJobFromSource(ctx).SourceSubmission(*submission).Execute()
	must(err)
	return made
}

func created() *lobewise.Upload {
	request := lobewise.NewUploadRequest(sizeOf(world.Upload))
	request.SetSha256(world.UploadSha256)
	made, _, err := api.UploadsAPI.CreateUpload(ctx).UploadRequest(*request).Execute()
	must(err)
	return made
}

func uploadOf(id string) *lobewise.Upload {
	found, _, err := api.UploadsAPI.GetUpload(ctx, id).Execute()
	must(err)
	return found
}

func sizeOf(path string) int64 {
	about, err := os.Stat(path)
	must(err)
	return about.Size()
}

// partOf is a file with part `number`, counted from 1.
func partOf(made *lobewise.Upload, number int) *os.File {
	whole := open(world.Upload)
	defer whole.Close()
	part, err := os.CreateTemp("", "part")
	must(err)
	_, err = io.Copy(part, io.NewSectionReader(whole, int64(number-1)*made.PartBytes, made.PartBytes))
	must(err)
	_, err = part.Seek(0, io.SeekStart)
	must(err)
	return part
}

// put sends a part to its address, which on S3 is none of the service's: no generated client is asked.
func put(address string, part *os.File) {
	defer os.Remove(part.Name())
	request, err := http.NewRequest(http.MethodPut, address, part)
	must(err)
	request.ContentLength = sizeOf(part.Name())
	answer, err := http.DefaultClient.Do(request)
	must(err)
	require(answer.StatusCode < 300, "PUT of a part: %d", answer.StatusCode)
}

func problemOf(err error) lobewise.Problem {
	var answered *lobewise.GenericOpenAPIError
	require(errors.As(err, &answered), "it was no answer: %v", err)
	problem, is := answered.Model().(lobewise.Problem)
	require(is, "it was no problem: %T", answered.Model())
	return problem
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	must(err)
	must(json.Unmarshal(text, &world))
	configuration := lobewise.NewConfiguration()
	configuration.Servers = lobewise.ServerConfigurations{{URL: world.Address}}
	api = lobewise.NewAPIClient(configuration)
	scored := world.Scored.JobId
	var jobId, uploadId string

	step("form", func() {
		made, _, err := api.JobsAPI.CreateJob(ctx).
			File(open(world.Scan)).
			Priority(lobewise.PRIORITY_STAT).
			ClientReference("go").
			CallbackUrl(world.CallbackUrl).
			IdempotencyKey("go-" + scored).
			Execute()
		must(err)
		require(made.Priority == lobewise.PRIORITY_STAT && made.GetClientReference() == "go", "another job: %+v", made)
		require(made.Input.GetSizeBytes() == sizeOf(world.Scan), "%d bytes", made.Input.GetSizeBytes())
		jobId = made.Id
	})
	step("source", func() {
		source := lobewise.NewSource()
		source.SetUrl(world.SourceUrl)
		source.SetSha256(world.SourceSha256)
		made := fromSource(source, lobewise.PRIORITY_BATCH)
		require(made.Priority == lobewise.PRIORITY_BATCH, "priority %s", made.Priority)
		cancelled(made.Id)
	})
	step("part", func() {
		made := created()
		address, err := url.Parse(made.Parts[0].GetUrl())
		must(err)
		expires, err := strconv.ParseInt(address.Query().Get("expires"), 10, 64)
		must(err)
		part := partOf(made, 1)
		defer os.Remove(part.Name())
		_, err = api.UploadsAPI.PutUploadPart(ctx, made.Id, 1).
			Expires(expires).Signature(address.Query().Get("signature")).Body(part).Execute()
		must(err)
		require(uploadOf(made.Id).Parts[0].Received, "the part is not there")
		uploadId = made.Id
	})
	step("upload", func() {
		if uploadId == "" {
			uploadId = created().Id
		}
		made := uploadOf(uploadId)
		for _, part := range made.Parts {
			if !part.Received {
				put(part.GetUrl(), partOf(made, int(part.Number)))
			}
		}
		completed, _, err := api.UploadsAPI.CompleteUpload(ctx, uploadId).Execute()
		must(err)
		require(completed.GetSha256() == world.UploadSha256, "sha256 %s", completed.GetSha256())
		source := lobewise.NewSource()
		source.SetUploadId(uploadId)
		accepted := fromSource(source, lobewise.PRIORITY_ROUTINE)
		require(accepted.Input.GetSizeBytes() == sizeOf(world.Upload), "%d bytes", accepted.Input.GetSizeBytes())
		cancelled(accepted.Id)
	})
	step("cancel", func() { cancelled(jobId) })
	step("poll", func() {
		first, answer, err := api.JobsAPI.GetJob(ctx, scored).Execute()
		must(err)
		require(first.Status == lobewise.JOBSTATUS_SUCCEEDED, "status %s", first.Status)
		_, again, _ := api.JobsAPI.GetJob(ctx, scored).IfNoneMatch(answer.Header.Get("ETag")).Execute()
		require(again.StatusCode == 304, "status %d", again.StatusCode) // what is no success is an error of this client
	})
	step("validate", func() {
		made, _, err := api.JobsAPI.ValidateScan(ctx).
			File(open(world.Scan)).Priority(lobewise.PRIORITY_STAT).Prefer("wait=30").Execute()
		must(err)
		until(func() bool { return job(made.Id).FinishedAt.IsSet() && job(made.Id).FinishedAt.Get() != nil })
		seen, _, err := api.ResultsAPI.GetInspection(ctx, made.Id).Execute()
		must(err)
		require(len(seen.Shape) == 3, "shape %v", seen.Shape)
	})
	step("callback", func() {
		delivered := func(times int) func() bool {
			return func() bool {
				found, _, err := api.CallbacksAPI.GetCallback(ctx, jobId).Execute()
				must(err)
				return found.Status == lobewise.CALLBACKSTATUS_DELIVERED && len(found.Attempts) >= times &&
					found.Attempts[0].Outcome == lobewise.CALLBACKOUTCOME_DELIVERED
			}
		}
		until(delivered(1))
		_, _, err := api.CallbacksAPI.RedeliverCallback(ctx, jobId).Execute()
		must(err)
		until(delivered(2))
	})
	step("report", func() {
		report, _, err := api.ResultsAPI.GetReport(ctx, scored).Execute()
		must(err)
		require(report.Severity.PercentOpacity == world.Scored.PercentOpacity, "%f", report.Severity.PercentOpacity)
		require(len(report.Lobes) == 5 && report.Lobes[4].Label == 5, "%d lobes", len(report.Lobes))
	})
	step("mask", func() {
		mask, _, err := api.ResultsAPI.GetMask(ctx, scored, lobewise.MASKNAME_LUNGS).Execute()
		must(err)
		defer os.Remove(mask.Name())
		digest := sha256.New()
		_, err = io.Copy(digest, mask)
		must(err)
		require(hex.EncodeToString(digest.Sum(nil)) == world.Scored.Sha256, "other bytes")
	})
	step("range", func() {
		mask, answer, err := api.ResultsAPI.GetMask(ctx, scored, lobewise.MASKNAME_LUNGS).Range_("bytes=2-101").Execute()
		must(err)
		defer os.Remove(mask.Name())
		require(answer.StatusCode == 206 && sizeOf(mask.Name()) == 100, "%d", answer.StatusCode)
		expected := fmt.Sprintf("bytes 2-101/%d", world.Scored.SizeBytes)
		require(answer.Header.Get("Content-Range") == expected, "%s", answer.Header.Get("Content-Range"))
	})
	step("list", func() {
		first, _, err := api.JobsAPI.ListJobs(ctx).Limit(1).Sort("created_at").Execute()
		must(err)
		second, _, err := api.JobsAPI.ListJobs(ctx).Limit(1).Sort("created_at").Cursor(first.GetNextCursor()).Execute()
		must(err)
		require(first.Items[0].Id < second.Items[0].Id, "the second page is not after the first")
		chosen, _, err := api.JobsAPI.ListJobs(ctx).
			Status([]lobewise.JobStatus{lobewise.JOBSTATUS_SUCCEEDED}).Priority(lobewise.PRIORITY_ROUTINE).Limit(200).Execute()
		must(err)
		for _, found := range chosen.Items {
			if found.Id == scored {
				return
			}
		}
		panic("the scored job is not in the list")
	})
	step("batch", func() {
		var items []lobewise.BatchItemSubmission
		for _, address := range []string{world.SourceUrl, world.RefusedUrl} {
			source := lobewise.NewSource()
			source.SetUrl(address)
			item := lobewise.NewBatchItemSubmission(*source)
			item.SetClientReference("a batch")
			items = append(items, *item)
		}
		made, _, err := api.BatchesAPI.CreateBatch(ctx).BatchSubmission(*lobewise.NewBatchSubmission(items)).Execute()
		must(err)
		_, _, err = api.BatchesAPI.CancelBatch(ctx, made.Id).Execute()
		must(err)
		found, _, err := api.BatchesAPI.GetBatch(ctx, made.Id).Execute()
		must(err)
		refusal := found.Items[1].GetError()
		require(found.Counts.Refused == 1 && refusal.Type == "/problems/source-not-allowed", "%+v", refusal)
		accepted := found.Items[0].GetJob()
		require(accepted.Priority == lobewise.PRIORITY_BATCH, "priority %s", accepted.Priority)
	})
	step("problem", func() {
		_, _, err := api.JobsAPI.GetJob(ctx, "unknown").Execute()
		require(problemOf(err).Type == "/problems/job-not-found", "%v", err)
		_, _, err = api.JobsAPI.ListJobs(ctx).Cursor("none").Execute()
		problem := problemOf(err)
		require(problem.GetStatus() == 422 && problem.Errors[0].Pointer == "/query/cursor", "%+v", problem)
	})
}
