"""Tests of the recipe (`make test`): it trains, and the same overrides give the same weights."""

import os
import tempfile
import unittest

import neuscale

WORDS = ("experiment=first", "data.dataset.count=120", "train.max_steps=10", "run.device=cpu")


class Training(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        os.environ["NEUSCALE_DATA"] = os.environ["NEUSCALE_RUNS"] = self.folder.name

    def test_ten_steps(self) -> None:
        run = neuscale.train(*WORDS)
        self.assertEqual(run.manifest["status"], "finished")
        assert run.outcome is not None
        self.assertEqual(run.outcome.steps, 10)
        self.assertLess(run.metrics[-1]["loss"], 2.0)

    def test_the_same_words_give_the_same_weights(self) -> None:
        first = neuscale.train(*WORDS, "run.name=first")
        second = neuscale.train(*WORDS, "run.name=second")
        self.assertEqual(
            first.manifest["result"]["weights_sha256"], second.manifest["result"]["weights_sha256"]
        )
        kept = {file["file"] for file in first.manifest["own_code"]["files"]}
        self.assertTrue(kept >= {"nets.py", "shapes.py"})


if __name__ == "__main__":
    unittest.main()
