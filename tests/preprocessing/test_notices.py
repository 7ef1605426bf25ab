"""Which lines of standard error are held back and which are printed."""

import os

from preprocessing.notices import without_notices

NOTICES = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1795651676.998101   10657 port.cc:153] oneDNN custom operations are on.\n"
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.\n"
)


def test_only_notices_are_dropped(capfd):
    with without_notices():
        os.write(2, NOTICES.encode())
        os.write(2, b"E0000 00:00:1795651676.998101 10657 cuda.cc:1] no device\n")
        # This is like the progress line of another thread, which has no line end.
        os.write(2, b"\r\x1b[2Kembedded 1 of 2" + NOTICES.splitlines(keepends=True)[1].encode())
        os.write(2, "image I0001 \xfc".encode())
    os.write(2, b", after")
    assert capfd.readouterr().err == (
        "E0000 00:00:1795651676.998101 10657 cuda.cc:1] no device\n"
        "\r\x1b[2Kembedded 1 of 2image I0001 \xfc, after"
    )


def test_an_error_in_between_is_told(capfd):
    try:
        with without_notices():
            os.write(2, b"first\n" + NOTICES.encode())
            raise ImportError("no TensorFlow")
    except ImportError:
        os.write(2, b"then\n")
    assert capfd.readouterr().err == "first\nthen\n"
