"""Each thing that may be wrong with what clients got is found."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from deploy.rehearsal.answers import LINES, Answer, compared, errors, read, repeated
from deploy.rehearsal.report import Report


def picture(level: int, side: int = 8) -> str:
    out = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


GOOD = Answer(0, "job-1", images={0: picture(100)}, image_events=1)


def test_good_answers_are_found_good() -> None:
    again = replace(GOOD, job_id="job-2", images={0: picture(102)})
    assert not errors([GOOD, again])
    assert not repeated([GOOD, again])
    assert compared([again], [GOOD]) == ([], 2)


def test_a_failed_request_is_told_of() -> None:
    assert errors([replace(GOOD, error="Unavailable: gone")]) == ["request 0: Unavailable: gone"]


def test_two_requests_of_one_job_and_an_image_sent_twice_are_duplicates() -> None:
    assert len(repeated([GOOD, GOOD])) == 1
    assert len(repeated([replace(GOOD, image_events=2)])) == 1


def test_a_picture_that_is_off_missing_or_of_another_size_differs() -> None:
    for images in ({0: picture(103)}, {}, {1: picture(100)}, {0: picture(100, side=16)}):
        assert compared([replace(GOOD, images=images)], [GOOD])[0]


def test_answers_survive_their_file_and_a_line_under_way_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    path.write_bytes(LINES.dump(GOOD) + b"\n" + LINES.dump(GOOD)[:20])
    assert read(path) == [GOOD]


def test_a_report_passes_only_if_something_was_checked_and_all_held() -> None:
    report = Report()
    report.measured("s", "seconds", "1")
    assert not report.passed
    report.check("s", "first", True)
    assert report.passed
    report.none_of("s", "failed", ["request 3"])
    assert not report.passed
    assert "FAILED  s  failed   request 3" in report.table()
