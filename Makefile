# Two commands: `make book` builds the book, `make test` runs every test. Like all others they set up .venv on first use.
# For teachers: `make slides`, `make handouts`, `make pdf [PARTS=sho]`. SOLUTIONS=0 leaves solutions out of the book, SOLUTIONS=1 prints them.
PY  ?= python3
BIN := .venv/bin/
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export JOBS SOLUTIONS

.PHONY: book html slides handouts pdf test dist serve lab bench clean

# The book, then its pages opened in a headless browser (skipped where there is none), unless that was done with the same pages.
OPENED := tests/test_book.py tests/test_book_reader.py tests/test_teaching.py
book: html
	@seen=$$(find book/_build/html $(OPENED) tests/conftest.py -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum); \
	if [ "$$seen" = "$$(cat book/_build/opened 2>/dev/null)" ]; then echo 'No page has changed since all were opened in a browser.'; \
	else $(BIN)pytest -q -m browser $(OPENED) && echo "$$seen" > book/_build/opened; fi

html: .venv/ready
	$(BIN)python book/export.py
	$(BIN)python book/execute.py
	$(BIN)jupyter-book build nbs --config book/_config.yml --toc $(CURDIR)/book/_toc.yml --path-output book -n -W --keep-going
	$(BIN)python book/slides.py

slides: html
	@ls book/_build/html/_static/slides/*.html

handouts: .venv/ready
	$(BIN)python book/handouts.py

# What is printed is what was built with solutions; they are left out on paper.
pdf:
	$(MAKE) html SOLUTIONS=1
	$(BIN)python book/pdf.py $(PARTS)

# Exporting must change nothing that is not staged or committed: the library is the notebooks.
test: .venv/ready
	$(BIN)python book/export.py
	@! git status --porcelain physattn | grep '^.[^ ]' || { echo 'physattn/ differs from what the notebooks export: commit or stage the files above'; exit 1; }
	$(BIN)ruff check -q && $(BIN)ruff format -q --check
	OMP_NUM_THREADS=1 $(BIN)nbdev_test --n_workers $(JOBS)
	$(BIN)pytest -q tests

# Wheel and sdist, installed into a fresh environment; every extra is looked up, one by one, in the versions of requirements.lock. Needs a network.
dist: .venv/ready
	$(BIN)pytest -q --slow -m slow tests/test_package.py

serve: html
	@echo "http://localhost:8000"
	$(BIN)python -m http.server -d book/_build/html 8000

lab: .venv/ready
	$(BIN)pip install -q -c requirements.lock "jupyterlab>=4,<5"
	$(BIN)jupyter lab nbs

bench: .venv/ready
	@for f in benchmarks/*.py; do echo "$$f"; $(BIN)python "$$f" || exit 1; done

clean:
	rm -rf book/_build .cache build *.egg-info

.venv/ready: requirements.lock settings.ini setup.py
	$(PY) -m venv .venv
	$(BIN)pip install -q -r requirements.lock
	$(BIN)pip install -q --no-deps --no-build-isolation -e .
	touch $@
