"""Runs the tests in this folder, or the modules that are named, and ends with a line "N passed, N failed"."""

import sys
import unittest
from pathlib import Path

folder = Path(__file__).resolve().parent
sys.path.insert(0, str(folder))
loader = unittest.TestLoader()
suite = loader.loadTestsFromNames(sys.argv[1:]) if sys.argv[1:] else loader.discover(str(folder))
result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
num_failed = len(result.failures) + len(result.errors) + len(result.skipped)
print(f"{result.testsRun - num_failed} passed, {num_failed} failed")
sys.exit(num_failed > 0)
