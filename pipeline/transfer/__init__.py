"""Files from other machines: fetched, resumed, checked and unpacked; no server is trusted."""
