#!/usr/bin/env python3
"""Runs ctest in a build folder and sums the single cases that the GoogleTest executables report.

Prints each failure and each skip with its reason, and as the last line "N passed, N failed, N skipped". Exit code 0:
something passed and nothing failed; 1: anything else (a crash, a time-out and an executable without a report count as
a failure).
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree


def one_line(text):
    return " ".join((text or "").split())


def cases_of(report):
    """(name, "passed" | "failed" | "skipped", reason) of every case of one GoogleTest report."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        failures, skips = case.findall("failure"), case.findall("skipped")
        if failures:
            yield name, "failed", one_line(failures[0].get("message"))
        elif skips or case.get("result") == "skipped":
            yield name, "skipped", one_line(skips[0].get("message") if skips else "")
        elif case.get("status") == "notrun":
            yield name, "skipped", "disabled"
        else:
            yield name, "passed", ""


def results_of(entry, reports):
    """The same of one ctest entry: its cases, or itself where it is no GoogleTest executable."""
    name, status = entry.get("name"), entry.get("status")
    report = reports / f"{name}.xml"
    results = []
    if report.exists():
        try:
            results = list(cases_of(report))
        except ElementTree.ParseError as error:
            results = [(name, "failed", f"unreadable report: {error}")]
    elif name.startswith("test_") and status == "run":
        results = [(name, "failed", "no report was written")]
    elif status == "run":
        results = [(name, "passed", "")]
    elif entry.find("skipped") is not None:
        results = [(name, "skipped", one_line(entry.findtext("system-out")))]
    if status == "fail" and not any(result == "failed" for _, result, _ in results):
        failure = entry.find("failure")
        reason = one_line(failure.get("message")) if failure is not None else ""
        results.append((name, "failed", reason or "crashed, timed out or exited non-zero"))
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=pathlib.Path, help="a configured and built folder")
    parser.add_argument("-j", "--jobs", default="2")
    parser.add_argument("ctest", nargs="*", help="more arguments for ctest, after --")
    arguments = parser.parse_args()

    build = arguments.build.resolve()
    reports, junit = build / "reports", build / "reports.xml"
    shutil.rmtree(reports, ignore_errors=True)
    junit.unlink(missing_ok=True)
    ctest = subprocess.run(["ctest", "--test-dir", str(build), "--output-on-failure", "-j", arguments.jobs,
                            "--output-junit", str(junit), *arguments.ctest], check=False)

    results = []
    if junit.exists():
        for entry in ElementTree.parse(junit).getroot().iter("testcase"):
            results += results_of(entry, reports)
    counts = {kind: sum(result == kind for _, result, _ in results) for kind in ("passed", "failed", "skipped")}
    # Skips by reason, said once; a reason starts with the place in the code that gave it.
    skips = {}
    for name, result, reason in results:
        if result == "skipped":
            skips.setdefault(re.sub(r"^\S+:\d+ ", "", reason or "no reason given"), []).append(name)
    for reason, names in skips.items():
        print(f"skipped {len(names)}: {', '.join(names)}: {reason}")
    for name, result, reason in results:
        if result == "failed":
            print(f"failed: {name}: {reason or 'no reason given'}")
    if ctest.returncode != 0 and counts["failed"] == 0:
        print(f"failed: ctest exited with {ctest.returncode}")
        counts["failed"] = 1
    if counts["passed"] == 0:
        print("failed: no test passed" if results else "failed: no test ran")
        counts["failed"] = max(counts["failed"], 1)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
