align.ready("align-labeler", (root) => align.signIn(root, (s) => align.toast("hello " + s.user.name)));
