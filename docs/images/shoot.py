"""Takes the README's screenshots from finished runs, with Playwright and Chromium:

python docs/images/shoot.py --report runs/smollm2-135m --ranking runs/quickstart
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).resolve().parent
GUIDELINES = "Prefer the answer that names every fact of the request and invents none."


def shoot_report(browser: Browser, run: Path) -> None:
    """The report's contents, title and verdict. Also prints how long the page is on a phone."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((run / "report.html").resolve().as_uri())
    box = page.locator("section.verdict").bounding_box()
    assert box is not None
    page.screenshot(
        path=HERE / "report.png",
        clip={"x": 0, "y": 0, "width": 1280, "height": box["y"] + box["height"] + 32},
    )
    page.set_viewport_size({"width": 390, "height": 844})
    screens = page.evaluate("document.documentElement.scrollHeight / innerHeight")
    print(f"{screens:.1f} screens on a phone")


def shoot_ranking(browser: Browser, run: Path) -> None:
    """The ranking page with the first prompt of the run and its four answers, in an order."""
    collected = json.loads((run / "current.json").read_text("utf-8"))["stages"]["collect"]
    items = (run / "collect" / collected / "out/answers.jsonl").read_text("utf-8").splitlines()[:6]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "items.jsonl"
        file.write_text("\n".join(items) + "\n", encoding="utf-8")
        command = [sys.executable, "-P", "-u", "-m", "stages", "annotate", str(file), "--port", "0"]
        command += ["--out", f"{folder}/out.jsonl", "--annotators", "ana", "--guidelines", GUIDELINES]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            links = (re.search(r"http://\S+/r/\S+", line) for line in server.stdout)
            link = next(match.group() for match in links if match)
            page = browser.new_page(viewport={"width": 960, "height": 1060})
            page.goto(link)
            for place in ("2", "1", "4", "3"):
                page.keyboard.press(place)
            page.mouse.move(0, 0)
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            page.wait_for_timeout(500)
            page.screenshot(path=HERE / "ranking.png")
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, metavar="RUN", help="the folder of the run whose report is shown")
    parser.add_argument(
        "--ranking", type=Path, metavar="RUN", help="the folder of the run whose answers are ranked"
    )
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if arguments.report:
            shoot_report(browser, arguments.report)
        if arguments.ranking:
            shoot_ranking(browser, arguments.ranking)
        browser.close()


if __name__ == "__main__":
    main()
