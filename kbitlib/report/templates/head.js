// Before anything is painted: the reader's own choice of light or dark, if there is one.
try { const theme = localStorage.getItem("kbit-theme"); if (theme) document.documentElement.dataset.theme = theme } catch {}
