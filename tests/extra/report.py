"""Opens a report in headless Chromium and looks at what it drew.

    python tests/extra/report.py MANTISSA CHROMIUM OUTPUT.png

The page must run without an error, draw every launch, the memory curve, the frontier and the table, and open the value
named behind #. A screenshot is kept for people to look at.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

REPO = pathlib.Path(__file__).resolve().parents[2]


def main():
    mantissa, chromium, picture = sys.argv[1:4]
    work = pathlib.Path(tempfile.mkdtemp())
    page = work / "plan.html"
    command = [mantissa, "plan", REPO / "tests/models/hostile.mir", "--policy", "auto", "--batch", "256"]
    command += ["--calibrate", REPO / "examples/digits", "--scale", "0.0625", "--report", page]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page.read_text(), re.S).group(1))
    browser = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1240,2900"]
    browser += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    browser += [f"--user-data-dir={work / 'profile'}", "--enable-logging=stderr", "--v=0"]
    address = page.as_uri() + "#loud"
    shown = subprocess.run([*browser, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    dom = shown.stdout
    errors = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    section = lambda name: re.search(rf'id="{name}".*?</svg>', dom, re.S).group(0)
    boxes = section("graph").count('class="kernel"')
    assert boxes == len(data["launches"]), f"{boxes} boxes for {len(data['launches'])} launches"
    kinds = {launch["kind"] for launch in data["launches"]}
    rows = lambda name: re.search(rf'id="{name}".*?(?=<h2>|</section>)', dom, re.S).group(0).count('class="row')
    assert rows("kinds") == len(kinds) + 2, "a heading, a row for each kind, and their sum"
    assert rows("time") == 1 + min(24, len(data["launches"])) and "<path" in section("memory")
    assert not any(launch["module"] for launch in data["launches"]) and "Time by module" not in dom
    assert section("frontier").count("<circle") == len(data["evidence"]["frontier"]) + 1
    table = re.search(r'<table id="values">.*?</table>', dom, re.S).group(0)
    assert "f16 overflows" in table and 'class="open"' in table, "the value behind # is open"
    assert table.count("<tr") == 4, "a heading, loud and its gradient, and what is open"
    subprocess.run([*browser, f"--screenshot={picture}", address], check=True, capture_output=True, timeout=120)
    assert pathlib.Path(picture).stat().st_size > 50_000
    print(f"ok report: {boxes} launches, {len(data['values'])} values; screenshot {picture}")


if __name__ == "__main__":
    main()
