"""The demonstration: ``python -m demo`` indexes real photographs and finds them again."""
