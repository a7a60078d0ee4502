"""`make demo`: the project's main job, from raw text to prices, on one machine."""
