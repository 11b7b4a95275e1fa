"""The file formats a CT comes in. Everything here runs in the sandbox: it meets bytes that nobody vouches for.

content     says what a file is, by what is in it
gate        bounds what a header may ask for, before a parser meets it
archive     zip files and folders, as members that are safe to open
images      NIfTI, NRRD and MetaImage; a parser for the header of each, `placement` for the geometry of all
dicom       DICOM series; its parts are named in its first lines
scan        picks one of them and leaves Hounsfield units behind
"""
