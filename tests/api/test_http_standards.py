"""Calls as HTTP's standards let clients write them."""

import hashlib

import pytest

from .conftest import ALLOWED_SOURCE, DOCUMENT, Service, nifti, require_problem

SHA256 = hashlib.sha256(nifti()).hexdigest()
PARAMETERS = [
    (method, path, parameter["name"])
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    for parameter in operation.get("parameters", ())
    if parameter["in"] == "query" and parameter["schema"].get("type") != "array"
]


@pytest.mark.parametrize(("method", "path", "name"), PARAMETERS)
def test_a_parameter_that_is_given_twice_is_refused(shared: Service, method: str, path: str, name: str) -> None:
    path = path.format(job_id="0" * 32, batch_id="0" * 32, upload_id="0" * 32, number=1)
    query: dict = {"expires": "1", "signature": "x"} if "upload" in path else {}
    query |= {name: ["1", "2"]}
    problem = require_problem(shared.client.request(method, path, params=query), 422, "invalid-parameters")
    assert problem["errors"] == [{"pointer": f"/query/{name}", "detail": "given more than once"}]


def test_empty_fields_of_a_form_are_as_if_they_were_not_there(shared: Service) -> None:
    empty = {"priority": "", "callback_url": "", "client_reference": ""}
    answer = shared.client.post("/v1/jobs", files={"file": nifti()}, data=empty)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["priority"], job["callback_url"], job["client_reference"]) == ("routine", None, None)
    unknown = shared.client.post("/v1/jobs", files={"file": nifti()}, data={"colour": ""})
    assert require_problem(unknown, 422, "invalid-parameters")["errors"][0]["pointer"] == "/body/colour"


def test_a_sha256_in_capitals_is_kept_in_small_letters(shared: Service) -> None:
    source = {"url": ALLOWED_SOURCE + "1.nii.gz", "sha256": SHA256.upper()}
    key = {"Idempotency-Key": SHA256[:20]}
    job = shared.client.post("/v1/jobs/from-source", json={"source": source}, headers=key).json()
    assert job["input"]["source"]["sha256"] == SHA256
    again = shared.client.post("/v1/jobs/from-source", json={"source": {**source, "sha256": SHA256}}, headers=key)
    assert again.json()["id"] == job["id"]


def test_an_upload_may_be_announced_in_capitals(shared: Service) -> None:
    wanted = {"size_bytes": len(nifti()), "sha256": SHA256.upper()}
    upload = shared.client.post("/v1/uploads", json=wanted).json()
    assert upload["sha256"] == SHA256
    shared.client.put(upload["parts"][0]["url"], content=nifti()).raise_for_status()
    complete = shared.client.post(upload["links"]["complete"])
    assert (complete.status_code, complete.json()["sha256"]) == (200, SHA256)


PART = b'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + nifti() + b"\r\n"
FORMS = {
    "a preamble": b"This is a form.\r\n--edges\r\n--edge\r\n" + PART + b"--edge--\r\n",
    "an epilogue": b"--edge\r\n" + PART + b"--edge--\r\nThat was a form.\r\n--edge\r\n",
    "an empty line before": b"\r\n--edge\r\n" + PART + b"--edge--\r\n",
    "blanks after boundaries": b"--edge \t\r\n" + PART + b"--edge-- \t\r\n",
    "header names in capitals": b"--edge\r\n" + PART.replace(b"Content-Disp", b"CONTENT-DISP") + b"--edge--\r\n",
    "header names in small letters": b"--edge\r\n" + PART.replace(b"Content-D", b"content-d") + b"--edge--\r\n",
    "parameters in capitals": b"--edge\r\n" + PART.replace(b"form-data; name", b"Form-Data ; NAME") + b"--edge--\r\n",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("piece_bytes", [1, 5, 100_000])
def test_a_form_may_be_written_as_its_standard_allows(shared: Service, form: bytes, piece_bytes: int) -> None:
    pieces = [form[i : i + piece_bytes] for i in range(0, len(form), piece_bytes)]
    headers = {"Content-Type": 'Multipart/Form-Data ; Charset=utf-8; BOUNDARY="edge"'}
    answer = shared.client.post("/v1/jobs", content=iter(pieces), headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.json()["input"]["sha256"] == SHA256


@pytest.mark.parametrize("body", [b"--edges\r\n" + PART + b"--edges--\r\n", b"x" * 300, b"x--edge\r\n" + PART])
def test_a_body_without_its_boundary_is_no_form(shared: Service, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    require_problem(shared.client.post("/v1/jobs", content=body, headers=headers), 400, "malformed-request")
