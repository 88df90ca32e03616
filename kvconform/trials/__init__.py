"""What the suites' scenarios have to be like for one connector, found out before the first of them is played."""
