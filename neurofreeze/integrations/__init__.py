"""Where other libraries' training loops call ours."""
