"""The stages of a run, one room each, and the science behind them."""
