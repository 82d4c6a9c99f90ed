"""What the chapters share: `models`, `attention`, `estimates`, `experiments`, `runs`, `plots`, `files`."""
