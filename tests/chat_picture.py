"""Make docs/figures/chat.png, the picture of the README: the web page, asked two questions.

    python -m inference.web --model checkpoints/demo --temperature 0 &
    python -m tests.chat_picture

The model is that of scripts/demo.sh.
"""

import shutil

import click
from playwright.sync_api import expect, sync_playwright

from tests.conftest import ROOT

QUESTIONS = ("你是谁", "【金融风控领域任务】什么是洗钱？")


@click.command()
@click.option("--url", default="http://127.0.0.1:7860", show_default=True, help="Where the page is served.")
def main(url: str) -> None:
    """Ask the page the two questions of the demo, and take its picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_context(locale="zh-CN", viewport={"width": 1100, "height": 620}).new_page()
        page.set_default_timeout(120_000)
        page.goto(url)
        box = page.get_by_placeholder("说点什么")
        for count, question in enumerate(QUESTIONS, start=1):
            box.fill(question)
            box.press("Enter")
            expect(page.get_by_test_id("bot")).to_have_count(count, timeout=120_000)
            expect(box).to_be_editable(timeout=120_000)
            page.wait_for_timeout(2_000)  # what is drawn after the answer's end
        page.screenshot(path=ROOT / "docs" / "figures" / "chat.png")
        browser.close()


if __name__ == "__main__":
    main()
