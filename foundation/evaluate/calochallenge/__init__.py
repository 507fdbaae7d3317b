"""The CaloChallenge's metrics of calorimeter showers (arXiv:2410.21611), from ragged hits and in bounded memory."""
