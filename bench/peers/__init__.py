"""What people would run instead, written as well as they would: a diffusers pipeline behind a small server."""
