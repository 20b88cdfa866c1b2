"""From a model's name to a folder with an ordinary checkpoint (`resolve`), and from that to a model (`load`)."""
