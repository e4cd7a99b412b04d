(() => {
  const root = document.documentElement
  const all = selector => [...document.querySelectorAll(selector)]
  const remember = (key, value) => { try { localStorage.setItem(key, value) } catch {} }
  const recall = key => { try { return localStorage.getItem(key) } catch { return null } }

  const theme = document.getElementById("theme-switch")
  theme.hidden = false
  theme.onclick = () => {
    const dark = root.dataset.theme ? root.dataset.theme == "dark" : matchMedia("(prefers-color-scheme: dark)").matches
    remember("kbit-theme", root.dataset.theme = dark ? "light" : "dark")
  }

  const code = document.getElementById("code-switch")
  if (code) {
    const show = on => {
      all("details.code").forEach(part => part.open = on)
      code.setAttribute("aria-pressed", on)
      code.textContent = on ? "Hide code" : "Show code"
    }
    code.hidden = false
    code.onclick = () => {
      const on = code.getAttribute("aria-pressed") != "true"
      show(on)
      remember("kbit-code", on)
    }
    show(recall("kbit-code") == "true")
  }

  // The section being read is marked in the table of contents.
  const links = all("nav ol a[href^='#']")
  const sections = all("main h2[id], main h3[id]")
  const mark = () => {
    const here = sections.filter(section => section.getBoundingClientRect().top < innerHeight / 3).pop()
    links.forEach(link => link.hash == "#" + here?.id ? link.setAttribute("aria-current", "location") : link.removeAttribute("aria-current"))
  }
  addEventListener("scroll", () => requestAnimationFrame(mark), { passive: true })
  mark()

  const small = document.querySelector(".contents-small")
  small?.addEventListener("click", event => { if (event.target.closest("a")) small.open = false })

  // On paper every answer is open; code and messages stay in the notebook.
  let opened = []
  addEventListener("beforeprint", () => {
    opened = all("main details:not([open], .code, .noise)")
    opened.forEach(part => part.open = true)
  })
  addEventListener("afterprint", () => opened.forEach(part => part.open = false))
})()
