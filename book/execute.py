"Execute every chapter that has changed, several at a time, into the cache that Jupyter Book reads."
import os, sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent/'_ext'))
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from nbdev_book import ROOT, read

def run(path):
    nb = read(path.read_text(encoding='utf-8'))
    return path, nb, single_nb_execution(nb, cwd=str(path.parent), timeout=900, allow_errors=False)

def stale(path, cache):
    try: cache.match_cache_notebook(read(path.read_text(encoding='utf-8')))
    except KeyError: return True

def notebooks():
    paths = sorted((ROOT/'nbs').rglob('*.ipynb'))
    return [p for p in paths if not any(part[0] in '._' for part in p.relative_to(ROOT).parts)]

if __name__ == '__main__':
    jobs = int(os.environ.get('JOBS') or os.cpu_count())
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, os.cpu_count()//jobs)))
    # Progress bars differ from run to run; tqdm also reports that it would rather be a widget.
    os.environ.update(TQDM_DISABLE='1', PYTHONWARNINGS='ignore:IProgress not found')
    cache, failed = get_cache(str(ROOT/'.cache/notebooks')), 0
    with ProcessPoolExecutor(jobs) as pool:
        for job in as_completed([pool.submit(run, p) for p in notebooks() if stale(p, cache)]):
            path, nb, res = job.result()
            print(f'{res.time or 0:7.1f} s  {path.relative_to(ROOT)}', '' if res.err is None else ' FAILED', flush=True)
            if res.err is None:
                bundle = CacheBundleIn(nb, str(path), data={'execution_seconds': res.time})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            else: failed += 1; print(res.exc_string, file=sys.stderr)
    sys.exit(failed > 0)
