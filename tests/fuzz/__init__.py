"""Coverage-guided fuzzing of the gate and the readers of all formats: `make fuzz`."""

FORMAT_NAMES = ("nifti", "nrrd", "metaimage", "gzip", "zip", "dicom")
