"""Fake `neuscale` program that these tests start instead of trainings."""

from stand_in import stand_in as stand_in
