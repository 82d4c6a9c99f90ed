"""Chromium, for what only a browser can do. A machine that has none gets one."""
import os, shutil, subprocess, sys
from contextlib import contextmanager
from pathlib import Path

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
FLAGS = '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'

def installed(playwright):
    "The Chromium of this machine, or the one that Playwright keeps, or None."
    own = Path(playwright.chromium.executable_path)
    return next(filter(None, map(shutil.which, NAMES)), None) or (str(own) if own.exists() else None)

def install():
    "As the distribution does it, where one may; otherwise as Playwright does it, which needs no rights."
    commands = [['apt-get', 'update', '-qq'], ['apt-get', 'install', '-y', '-qq', '--no-install-recommends', 'chromium']] if shutil.which('apt-get') and os.geteuid() == 0 else []
    for command in [*commands, [sys.executable, '-m', 'playwright', 'install', 'chromium']]:
        if shutil.which(NAMES[0]): return
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

@contextmanager
def chromium():
    "A browser; it is closed in the end."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        if not installed(playwright): install()
        if not (path := installed(playwright)): sys.exit('Chromium is missing and could not be installed: install it, for instance with apt-get install chromium')
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try: yield browser
        finally: browser.close()
