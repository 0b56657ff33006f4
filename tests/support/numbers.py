"""Hypothesis strategies of the integers structures are made of."""

from __future__ import annotations

from hypothesis import strategies as st

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)
