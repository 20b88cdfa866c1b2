"""Published methods: what to select, freeze and train. One file a method."""
